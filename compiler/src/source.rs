//! A model to run: a checkpoint as it was published, or a bundle that was built from one.

use std::path::Path;

use moa_format::{MANIFEST_FILE, ModelConfig, Plan};
use moa_lm::{WeightError, WeightSource};
use moa_model::{ChatTokenizer, Checkpoint};

use crate::bundle::Bundle;

/// Where weights, tokenizer and plans come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A Hugging Face folder or a GGUF file.
    Checkpoint(Box<Checkpoint>),
    /// A folder that `build` wrote.
    Bundle(Box<Bundle>),
}

impl Source {
    /// Opens whichever of the two `path` is.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if path.join(MANIFEST_FILE).is_file() {
            Ok(Self::Bundle(Box::new(Bundle::open(path)?)))
        } else {
            Ok(Self::Checkpoint(Box::new(Checkpoint::open(path)?)))
        }
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Bundle(bundle) => bundle.config(),
        }
    }

    pub(crate) fn tokenizer(&self) -> Option<&ChatTokenizer> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.tokenizer(),
            Self::Bundle(bundle) => bundle.tokenizer(),
        }
    }

    /// A hash that two models share only if their weights are the same.
    pub(crate) fn identity(&self) -> anyhow::Result<String> {
        match self {
            Self::Checkpoint(checkpoint) => Ok(checkpoint.source_hash()?),
            Self::Bundle(bundle) => {
                let shards = format!("{:?}", bundle.manifest().weights.shards);
                Ok(moa_format::sha256_hex(shards.as_bytes()))
            }
        }
    }

    /// The plan that is used when none is asked for.
    pub(crate) fn default_plan(&self) -> anyhow::Result<Option<Plan>> {
        match self {
            Self::Checkpoint(_) => Ok(None),
            Self::Bundle(bundle) => bundle.default_plan(),
        }
    }

    /// A plan by its name inside the bundle.
    pub(crate) fn plan(&self, name: &str) -> anyhow::Result<Option<Plan>> {
        match self {
            Self::Checkpoint(_) => Ok(None),
            Self::Bundle(bundle) => bundle.plan(name),
        }
    }

    /// Names of the plans inside the bundle.
    pub(crate) fn plan_names(&self) -> Vec<String> {
        match self {
            Self::Checkpoint(_) => Vec::new(),
            Self::Bundle(bundle) => bundle.plan_names(),
        }
    }
}

impl WeightSource for Source {
    fn config(&self) -> &ModelConfig {
        Self::config(self)
    }

    fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint
                .tensor(name)
                .and_then(|tensor| tensor.to_f32())
                .map_err(|error| WeightError::new(name, error)),
            Self::Bundle(bundle) => bundle.tensor_f32(name),
        }
    }
}
