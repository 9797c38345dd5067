//! A small random model for this crate's own tests.

use moa_format::{Family, ModelConfig, RopeConfig, TensorSpec};
use moa_reference::weights::random;

use crate::{Cpu, Lm, made_weights};

/// Two layers with two KV heads on the CPU.
pub(crate) fn model() -> Lm<Cpu> {
    let config = ModelConfig {
        family: Family::Llama,
        layers: 2,
        hidden_dim: 48,
        ffn_dim: 64,
        heads: 6,
        kv_heads: 2,
        head_dim: 8,
        vocab_size: 101,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 1e4,
            scaling: None,
        },
        tied_embeddings: false,
        qkv_bias: false,
        max_context: 4096,
        bos: None,
        eos: vec![],
    };
    let weights = made_weights(config, |spec: &TensorSpec| {
        let len = usize::try_from(spec.len()).unwrap();
        random(&spec.name, len, spec.cols as usize, 2.5)
    });
    Lm::load(Cpu, &weights, &()).unwrap()
}
