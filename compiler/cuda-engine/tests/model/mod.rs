//! Models for tests: small random ones, and the tiny checkpoints under tests/fixtures. Weights are rounded to bf16, so that the CPU
//! computes with what the device has.

use std::path::PathBuf;

use half::bf16;
use moa_format::{Family, ModelConfig, RopeConfig, TensorSpec};
use moa_lm::{WeightSource, WeightsFrom, made_weights};
use moa_model::Checkpoint;
use moa_reference::weights;

fn rounded(values: Vec<f32>) -> Vec<f32> {
    values
        .into_iter()
        .map(|x| bf16::from_f32(x).to_f32())
        .collect()
}

/// Random weights.
fn random_of(config: ModelConfig) -> impl WeightSource {
    made_weights(config, |spec: &TensorSpec| {
        let len = usize::try_from(spec.len()).unwrap();
        rounded(weights::random(&spec.name, len, spec.cols as usize, 2.5))
    })
}

/// A model of three layers with GQA, biases and a head of its own.
pub(crate) fn random(heads: u32, kv_heads: u32, head_dim: u32) -> impl WeightSource {
    random_of(ModelConfig {
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
pub(crate) fn tiny(name: &str) -> impl WeightSource {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    // Where tests run on a host without the sources, the fixtures lie elsewhere.
    let folder = std::env::var_os("MOA_FIXTURES").map_or(folder, PathBuf::from);
    let checkpoint = Checkpoint::open_weights(folder.join(name)).unwrap();
    let config = checkpoint.config().clone();
    WeightsFrom::new(config, move |name: &str| {
        let values = checkpoint.tensor(name).and_then(|tensor| tensor.to_f32())?;
        let norm = name.contains("norm") || name.ends_with("bias");
        Ok::<_, moa_model::ModelError>(if norm { values } else { rounded(values) })
    })
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
