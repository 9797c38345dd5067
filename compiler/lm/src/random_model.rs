//! A small random model for this crate's own tests.

use moa_format::{Family, ModelConfig, RopeConfig};

use crate::{Cpu, Lm, WeightError, WeightSource};

/// Random weights of a two-layer model with two KV heads.
struct Random(ModelConfig);

impl WeightSource for Random {
    fn config(&self) -> &ModelConfig {
        &self.0
    }

    fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let spec = moa_format::tensors(&self.0)
            .into_iter()
            .find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| WeightError::new(name, "no such tensor"))?;
        let mut state = name.bytes().fold(7u32, |state, byte| {
            state.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        let scale = if name.contains("norm") {
            0.1
        } else {
            2.5 / (spec.cols as f32).sqrt()
        };
        let shift = if name.contains("norm") { 1.0 } else { 0.0 };
        Ok((0..spec.len())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale + shift
            })
            .collect())
    }
}

/// The model on the CPU.
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
    Lm::load(Cpu, &Random(config), &()).unwrap()
}
