//! Opening a bundle: the manifest at once, plans and weights when they are asked for, each with its hash checked.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use moa_format::{
    FormatError, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, ModelConfig, Plan, unpack,
};
use moa_lm::{WeightError, WeightSource};
use moa_model::{ChatTokenizer, ModelError};

use crate::files::{FileError, read_bounded};

const FILE_LIMIT: u64 = 256 << 20;

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is not a sound bundle", path.display())]
    Format {
        path: PathBuf,
        #[source]
        source: FormatError,
    },
    #[error("the bundle's tokenizer cannot be used")]
    Tokenizer(#[source] ModelError),
    #[error("the bundle has no tensor {name}")]
    NoTensor { name: String },
}

/// A folder that `build` wrote.
#[derive(Debug)]
pub(crate) struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
    tokenizer: Option<ChatTokenizer>,
    /// The shard that was read last: tensors are asked for in the order in which they lie.
    shard: RefCell<Option<(u32, Vec<u8>)>>,
}

impl Bundle {
    /// Opens a folder and checks its manifest and tokenizer files.
    pub(crate) fn open(folder: &Path) -> Result<Self, BundleError> {
        let path = folder.join(MANIFEST_FILE);
        let bytes = read_bounded(&path, MAX_MANIFEST_BYTES as u64)?;
        let manifest =
            Manifest::from_json(&bytes).map_err(|source| BundleError::Format { path, source })?;
        let mut bundle = Self {
            folder: folder.to_path_buf(),
            manifest,
            tokenizer: None,
            shard: RefCell::new(None),
        };
        if let Some(files) = bundle.manifest.tokenizer.clone() {
            let tokenizer = bundle.file(&files.tokenizer)?;
            let config = bundle.file(&files.config)?;
            let eos = bundle.manifest.model.eos.clone();
            bundle.tokenizer = Some(
                ChatTokenizer::from_json(&tokenizer, &config, eos)
                    .map_err(BundleError::Tokenizer)?,
            );
        }
        Ok(bundle)
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.manifest.model
    }

    pub(crate) fn tokenizer(&self) -> Option<&ChatTokenizer> {
        self.tokenizer.as_ref()
    }

    pub(crate) fn plan_names(&self) -> Vec<String> {
        self.manifest
            .plans
            .iter()
            .map(|plan| plan.name.clone())
            .collect()
    }

    pub(crate) fn default_plan(&self) -> anyhow::Result<Option<Plan>> {
        self.plan(&self.manifest.default_plan)
    }

    /// A plan by name; `None` where the bundle has none of that name.
    pub(crate) fn plan(&self, name: &str) -> anyhow::Result<Option<Plan>> {
        let Ok(entry) = self.manifest.plan(name) else {
            return Ok(None);
        };
        let path = self.folder.join(&entry.file);
        let bytes = read_bounded(&path, entry.bytes)?;
        let plan = self
            .manifest
            .open_plan(entry, &bytes)
            .map_err(|source| BundleError::Format { path, source })?;
        Ok(Some(plan))
    }

    /// The bytes of a listed file, checked.
    fn file(&self, name: &str) -> Result<Vec<u8>, BundleError> {
        let path = self.folder.join(name);
        let bytes = read_bounded(&path, FILE_LIMIT)?;
        if let Some(entry) = self.manifest.files.iter().find(|entry| entry.file == name) {
            entry
                .check_bytes(&bytes)
                .map_err(|source| BundleError::Format { path, source })?;
        }
        Ok(bytes)
    }

    /// Reads a shard and checks its chunks.
    fn read_shard(&self, index: u32) -> Result<Vec<u8>, BundleError> {
        let shard = self
            .manifest
            .weights
            .shards
            .get(index as usize)
            .ok_or_else(|| BundleError::NoTensor {
                name: format!("of shard {index}"),
            })?;
        let path = self.folder.join(&shard.file);
        let bytes = read_bounded(&path, u64::from(shard.bytes))?;
        shard
            .check_bytes(&bytes)
            .map_err(|source| BundleError::Format { path, source })?;
        Ok(bytes)
    }

    /// A tensor's values.
    fn values(&self, name: &str) -> Result<Vec<f32>, BundleError> {
        let tensor = self
            .manifest
            .tensor(name)
            .ok_or_else(|| BundleError::NoTensor {
                name: name.to_owned(),
            })?;
        let mut values = Vec::with_capacity(tensor.rows as usize * tensor.cols as usize);
        for piece in &tensor.pieces {
            let mut kept = self.shard.borrow_mut();
            if kept.as_ref().is_none_or(|(index, _)| *index != piece.shard) {
                *kept = Some((piece.shard, self.read_shard(piece.shard)?));
            }
            let bytes = kept
                .as_ref()
                .and_then(|(_, bytes)| {
                    bytes
                        .get(piece.offset as usize..)?
                        .get(..piece.bytes as usize)
                })
                .ok_or_else(|| BundleError::NoTensor {
                    name: name.to_owned(),
                })?;
            let unpacked =
                unpack(tensor.dtype, bytes, piece.rows, tensor.cols).map_err(|source| {
                    BundleError::Format {
                        path: self.folder.clone(),
                        source,
                    }
                })?;
            values.extend_from_slice(&unpacked);
        }
        Ok(values)
    }

    /// Checks every byte of the bundle; calls `step` after each file.
    pub(crate) fn verify(&self, mut step: impl FnMut()) -> anyhow::Result<()> {
        for file in &self.manifest.files {
            self.file(&file.file)?;
            step();
        }
        for name in self.plan_names() {
            self.plan(&name)?;
            step();
        }
        // A sound manifest's tensors lie one after the other and use every shard: reading them reads all.
        let mut shards = 0;
        for tensor in &self.manifest.weights.tensors {
            let values = self.values(&tensor.name)?;
            if let Some(place) = values.iter().position(|value| !value.is_finite()) {
                anyhow::bail!("{} holds {} at {place}", tensor.name, values[place]);
            }
            while tensor
                .pieces
                .last()
                .is_some_and(|piece| shards <= piece.shard)
            {
                shards += 1;
                step();
            }
        }
        Ok(())
    }
}

impl WeightSource for Bundle {
    fn config(&self) -> &ModelConfig {
        Self::config(self)
    }

    fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        self.values(name)
            .map_err(|error| WeightError::new(name, error))
    }
}
