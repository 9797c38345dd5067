//! A bundle in a folder, for native use: the only file of this crate that opens files.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use moa_format::{CHUNK_BYTES, MANIFEST_FILE, Manifest, Plan};

use crate::create::EngineOptions;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::gpu::{Gpu, GpuOptions};
use crate::setup::Setup;

/// A bundle that cannot be read, or one that the engine refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A plan that is neither a name in the bundle nor a file.
    #[error("there is no plan {name:?}: the bundle has {known}, and no such file exists")]
    UnknownPlan {
        /// What was asked for.
        name: String,
        /// The names in the bundle.
        known: String,
    },
    /// Anything the engine refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A folder with a checked manifest.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Reads and checks the manifest in `folder`.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        let json = read(&folder.join(MANIFEST_FILE))?;
        let manifest =
            Manifest::from_json(json).map_err(|source| EngineError::Manifest { source })?;
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
        })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A plan by its name in the bundle, `dense`, or a file; without a name the bundle's default.
    pub fn plan(&self, name: Option<&str>) -> Result<Plan, BundleError> {
        let name = name.unwrap_or(&self.manifest.default_plan);
        if let Ok(entry) = self.manifest.plan(name) {
            let bytes = read(&self.folder.join(&entry.file))?;
            return Ok(Setup::choose_plan(&self.manifest, name, Some(&bytes))?);
        }
        let path = Path::new(name);
        if path.is_file() {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            return Ok(Setup::choose_plan(
                &self.manifest,
                &stem,
                Some(&read(path)?),
            )?);
        }
        if name == "dense" {
            return Ok(Setup::choose_plan(&self.manifest, name, None)?);
        }
        let known: Vec<&str> = self
            .manifest
            .plans
            .iter()
            .map(|plan| plan.name.as_str())
            .collect();
        Err(BundleError::UnknownPlan {
            name: name.to_owned(),
            known: known.join(", "),
        })
    }

    /// The bundle's model under `plan` at a declared context.
    pub fn setup(&self, plan: Plan, context: u32) -> Result<Setup, BundleError> {
        Ok(Setup::new(self.manifest.clone(), plan, context)?)
    }

    /// An engine with its weights, ready for tokens. The setup is one of this bundle.
    pub async fn engine(
        &self,
        setup: Setup,
        gpu: GpuOptions,
        options: EngineOptions,
    ) -> Result<Engine, BundleError> {
        let gpu = Gpu::open(gpu, setup.needs()).await?;
        let mut engine = Engine::new(gpu, setup, options).await?;
        self.load(&mut engine)?;
        engine.finish_loading().await?;
        Ok(engine)
    }

    /// Reads every shard, chunk by chunk, each checked against its hash.
    fn load(&self, engine: &mut Engine) -> Result<(), BundleError> {
        let mut chunk = Vec::new();
        for (index, shard) in self.manifest.weights.shards.iter().enumerate() {
            let path = self.folder.join(&shard.file);
            let failed = |source| BundleError::File {
                path: path.clone(),
                source,
            };
            let mut file = File::open(&path).map_err(failed)?;
            let mut offset = 0;
            while offset < u64::from(shard.bytes) {
                chunk.clear();
                file.by_ref()
                    .take(u64::from(CHUNK_BYTES))
                    .read_to_end(&mut chunk)
                    .map_err(failed)?;
                engine.write_shard(index, offset, &chunk)?;
                offset += u64::from(CHUNK_BYTES);
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    std::fs::read(path).map_err(|source| BundleError::File {
        path: path.to_owned(),
        source,
    })
}
