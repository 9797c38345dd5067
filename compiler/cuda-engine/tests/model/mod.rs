//! Models for tests: small random ones, and the tiny checkpoints under tests/fixtures. Weights are rounded to bf16, so that the CPU
//! computes with what the device has.

use std::path::PathBuf;

use half::bf16;
use moa_format::{Family, ModelConfig, RopeConfig};
use moa_lm::{WeightError, WeightSource};
use moa_model::Checkpoint;

fn rounded(values: Vec<f32>) -> Vec<f32> {
    values
        .into_iter()
        .map(|x| bf16::from_f32(x).to_f32())
        .collect()
}

/// Random weights.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) ModelConfig);

impl WeightSource for Random {
    fn config(&self) -> &ModelConfig {
        &self.0
    }

    fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let spec = moa_format::tensors(&self.0)
            .into_iter()
            .find(|spec| spec.name == name)
            .ok_or_else(|| WeightError::new(name, "no such tensor"))?;
        let mut state = name.bytes().fold(7u32, |state, byte| {
            state.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        let norm = name.contains("norm");
        let scale = if norm {
            0.1
        } else {
            2.5 / (spec.cols as f32).sqrt()
        };
        let shift = if norm { 1.0 } else { 0.0 };
        let values = (0..spec.len())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale + shift
            })
            .collect();
        Ok(rounded(values))
    }
}

/// A model of three layers with GQA, biases and a head of its own.
pub(crate) fn random(heads: u32, kv_heads: u32, head_dim: u32) -> Random {
    Random(ModelConfig {
        family: Family::Qwen2,
        layers: 3,
        hidden_dim: 128,
        ffn_dim: 192,
        heads,
        kv_heads,
        head_dim,
        vocab_size: 504,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 1e4,
            scaling: None,
        },
        tied_embeddings: false,
        qkv_bias: true,
        max_context: 4096,
        bos: None,
        eos: vec![],
    })
}

/// A tiny checkpoint.
#[derive(Debug)]
pub(crate) struct Tiny(Checkpoint);

impl Tiny {
    pub(crate) fn open(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        // Where tests run on a host without the sources, the fixtures lie elsewhere.
        let folder = std::env::var_os("MOA_FIXTURES").map_or(folder, PathBuf::from);
        Self(Checkpoint::open_weights(folder.join(name)).unwrap())
    }
}

impl WeightSource for Tiny {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let tensor = self.0.tensor(name).and_then(|tensor| tensor.to_f32());
        let values = tensor.map_err(|error| WeightError::new(name, error))?;
        let norm = name.contains("norm") || name.ends_with("bias");
        Ok(if norm { values } else { rounded(values) })
    }
}

/// Reproducible tokens.
pub(crate) fn tokens(len: usize, vocab: u32, seed: u32) -> Vec<u32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % vocab
        })
        .collect()
}
