//! A checkpoint, whatever it was published as.

use std::ops::Range;
use std::path::{Path, PathBuf};

use moa_format::{ModelConfig, hex};
use sha2::{Digest, Sha256};

use crate::tokenizer::ChatTokenizer;
use crate::weights::Weights;
use crate::{ModelError, Result, SourceTensor, SourceType, folder, gguf};

/// What the checkpoint was published as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFormat {
    /// A folder with config.json and safetensors.
    Folder,
    /// One GGUF file.
    Gguf,
}

/// An opened checkpoint: its shape and its tokenizer in memory, its weights on disk.
///
/// Opening reads headers and the tokenizer only, and checks that every weight of the model is there, in the
/// right shape and within its file. Weights are read when asked for; several threads may ask at once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    format: SourceFormat,
    config: ModelConfig,
    name: String,
    license: Option<String>,
    weights: Weights,
    tokenizer: Option<ChatTokenizer>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a GGUF file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_inner(path.as_ref(), true)
    }

    /// As [`Self::open`], without looking at the tokenizer: for work on token ids alone.
    pub fn open_weights(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_inner(path.as_ref(), false)
    }

    fn open_inner(path: &Path, with_tokenizer: bool) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|source| ModelError::io(path, source))?;
        let stem = |path: &Path| {
            path.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let mut checkpoint = if meta.is_dir() {
            let model = folder::open(path)?;
            // A folder called `.` or `..` still has a name.
            let full = path
                .canonicalize()
                .map_err(|source| ModelError::io(path, source))?;
            let own = full
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let tokenizer = if with_tokenizer {
                folder::tokenizer_files::read(path, model.config.eos.clone())?
            } else {
                None
            };
            Self {
                path: path.to_owned(),
                format: SourceFormat::Folder,
                config: model.config,
                name: model.name.unwrap_or(own),
                license: model.license,
                weights: model.weights,
                tokenizer,
            }
        } else {
            let model = gguf::open(path)?;
            let tokenizer = if with_tokenizer {
                gguf::tokenizer::read(&model.metadata, model.config.eos.clone())?
            } else {
                None
            };
            Self {
                path: path.to_owned(),
                format: SourceFormat::Gguf,
                config: model.config,
                name: model
                    .metadata
                    .text("general.name")?
                    .map_or_else(|| stem(path), ToOwned::to_owned),
                license: model
                    .metadata
                    .text("general.license")?
                    .map(ToOwned::to_owned),
                weights: model.weights,
                tokenizer,
            }
        };
        if let Some(tokenizer) = &mut checkpoint.tokenizer {
            checkpoint.config.eos = tokenizer
                .complete_eos(checkpoint.config.vocab_size)
                .to_vec();
        }
        Ok(checkpoint)
    }

    /// The model's shape; checked.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the checkpoint was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the checkpoint was published as.
    pub fn format(&self) -> SourceFormat {
        self.format
    }

    /// The name that the checkpoint gives itself, else that of its file or folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The license that the checkpoint names, as it writes it.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// The tokenizer, where the checkpoint carries one.
    pub fn tokenizer(&self) -> Option<&ChatTokenizer> {
        self.tokenizer.as_ref()
    }

    /// How a tensor is stored, without reading it.
    pub fn source_type(&self, name: &str) -> Result<SourceType> {
        self.weights.located(name).map(|place| place.source_type)
    }

    /// A whole tensor by its canonical (Hugging Face) name, as listed by [`moa_format::tensors`].
    pub fn tensor(&self, name: &str) -> Result<SourceTensor> {
        self.weights.read(name, None)
    }

    /// Some rows of a tensor: what an embedding larger than memory is read by.
    pub fn tensor_rows(&self, name: &str, rows: Range<usize>) -> Result<SourceTensor> {
        self.weights.read(name, Some(rows))
    }

    /// SHA-256 in lower-case hex: of the file for GGUF, for a folder of the sorted list of its files' names and
    /// hashes. Reads every byte.
    pub fn source_hash(&self) -> Result<String> {
        let mut files = self.weights.hashes()?;
        if self.format == SourceFormat::Gguf && files.len() == 1 {
            return Ok(hex(&files[0].1));
        }
        for (name, bytes) in folder::small_files(&self.path)? {
            files.push((name, Sha256::digest(&bytes).into()));
        }
        files.sort();
        let list: String = files
            .iter()
            .map(|(name, hash)| format!("{}  {name}\n", hex(hash)))
            .collect();
        Ok(hex(&Sha256::digest(list.as_bytes())))
    }

    /// Bytes of the files that hold the weights.
    pub fn weight_file_bytes(&self) -> u64 {
        self.weights
            .files()
            .iter()
            .map(crate::file::SourceFile::len)
            .sum()
    }
}
