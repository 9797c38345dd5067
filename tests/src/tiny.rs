//! Tiny random models as bundles in memory, and their forward pass in f64 out of the kernels' twins.

use std::collections::BTreeMap;

use half::f16;
use moa_format::{
    DType, EMBEDDING, FINAL_NORM, Family, ModelConfig, Plan, Provenance, RopeConfig, RopeScaling,
    TensorRole, TensorSpec, layer_tensor, pack, tensors, unpack,
};
use moa_mask::{HeadRule, ModelMasks};
use moa_reference::attention_prefill::{AttentionShape, attention_prefill};
use moa_reference::matmul::matmul;
use moa_reference::rms_norm::rms_norm;
use moa_reference::rope::rope;
use moa_reference::swiglu::swiglu;
use moa_runtime_web::{Engine, EngineOptions};

use crate::bundles::Bundle;
use crate::random::Random;

/// A bundle and what its weights mean.
#[derive(Debug, Clone)]
pub struct TinyModel {
    /// The bundle.
    pub bundle: Bundle,
    /// Every tensor as it is stored, dequantized.
    weights: BTreeMap<String, Vec<f32>>,
}

/// How a cache stores K and V.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvStored {
    /// As the engine does.
    F16,
    /// As oracles do.
    F32,
}

/// A small shape with three query heads to a KV head; `head_dim` 16.
pub fn config(kv_heads: u32, gqa_group: u32) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        layers: 3,
        hidden_dim: 96,
        ffn_dim: 160,
        heads: kv_heads * gqa_group,
        kv_heads,
        head_dim: 16,
        vocab_size: 300,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 10_000.0,
            scaling: None,
        },
        tied_embeddings: true,
        qkv_bias: false,
        max_context: 4096,
        bos: Some(1),
        eos: vec![2],
    }
}

/// The same with everything else that the engines know: biases, an untied head, scaled frequencies.
pub fn config_with_extras() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen2,
        tied_embeddings: false,
        qkv_bias: true,
        rope: RopeConfig {
            theta: 500_000.0,
            scaling: Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 64,
            }),
        },
        ..config(1, 7)
    }
}

/// A plan of exact spans, repeated over the heads.
pub fn plan(config: &ModelConfig, sink: u32, spans: &[u32]) -> Plan {
    let mut spans = spans.iter().copied().cycle();
    let mut row = || {
        (0..config.kv_heads)
            .map(|_| HeadRule::Exact {
                span: spans.next().unwrap_or(sink + 1),
            })
            .collect()
    };
    Plan {
        name: "tiny".into(),
        sink,
        block: sink.max(1),
        rules: (0..config.layers).map(|_| row()).collect(),
        provenance: Provenance::default(),
    }
}

impl TinyModel {
    /// Random weights: matrices stored as `matrix`, norms and biases as `vector`.
    pub fn new(config: ModelConfig, plan: Plan, matrix: DType, vector: DType, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self::of(config, plan, |spec| {
            let count = usize::try_from(spec.len()).expect("a tiny model");
            #[expect(clippy::cast_precision_loss, reason = "a scale")]
            let scale = 2.0 / (spec.cols as f32).sqrt();
            match spec.role {
                TensorRole::Norm => (
                    (0..count).map(|_| 1.0 + 0.25 * random.unit()).collect(),
                    vector,
                ),
                TensorRole::Bias => (random.spiked(count, 0.5), vector),
                TensorRole::Embedding | TensorRole::LmHead | TensorRole::Linear => {
                    (random.spiked(count, scale), matrix.for_cols(spec.cols))
                }
            }
        })
    }

    /// A bundle of the weights that `values` gives, each tensor in the type that it says.
    pub fn of(
        config: ModelConfig,
        plan: Plan,
        mut values: impl FnMut(&TensorSpec) -> (Vec<f32>, DType),
    ) -> Self {
        let sources: BTreeMap<String, (Vec<f32>, DType)> = tensors(&config)
            .iter()
            .map(|spec| (spec.name.clone(), values(spec)))
            .collect();
        let mut weights: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let dtype = |spec: &TensorSpec| sources[&spec.name].1;
        let bundle = Bundle::build(config, plan, dtype, |spec, rows| {
            let (values, dtype) = &sources[&spec.name];
            let range = (rows.start * spec.cols) as usize..(rows.end * spec.cols) as usize;
            let piece = pack(*dtype, &values[range], spec.cols).expect("finite weights");
            let rows = rows.end - rows.start;
            let stored = unpack(*dtype, &piece.bytes, rows, spec.cols).expect("packed above");
            weights.entry(spec.name.clone()).or_default().extend(stored);
            piece
        });
        Self { bundle, weights }
    }

    /// An engine under the bundle's own plan.
    pub fn engine(&self, context: u32, options: EngineOptions) -> Engine {
        self.bundle.engine_with(&self.bundle.plan, context, options)
    }

    /// The masks of the bundle's plan.
    pub fn masks(&self, context: u32) -> ModelMasks {
        self.bundle.plan.masks(context).expect("a checked plan")
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.bundle.manifest.model
    }

    /// Logits of every position, `[ids.len(), vocab_size]`, from the twins; K and V are rounded as caches store them.
    pub fn logits(&self, ids: &[u32], masks: &ModelMasks, stored: KvStored) -> Vec<f64> {
        let config = self.config();
        let shape = AttentionShape {
            heads: config.heads as usize,
            kv_heads: config.kv_heads as usize,
            head_dim: config.head_dim as usize,
        };
        let hidden_dim = config.hidden_dim as usize;
        let inv_freq = config.rope.inv_freq(config.head_dim);
        let positions: Vec<u32> = (0u32..).take(ids.len()).collect();
        let mut hidden =
            moa_reference::embedding::embedding(ids, &self.matrix(EMBEDDING), hidden_dim);
        for layer in 0..config.layers {
            let name = |part: &str| layer_tensor(layer, part);
            let normed = self.norm(&hidden, &name("input_layernorm.weight"));
            let project = |part: &str| {
                let bias = config
                    .qkv_bias
                    .then(|| &self.weights[&name(&format!("self_attn.{part}.bias"))]);
                let weight = self.matrix(&name(&format!("self_attn.{part}.weight")));
                f32s(&matmul(
                    &normed,
                    &weight,
                    hidden_dim,
                    bias.map(Vec::as_slice),
                ))
            };
            let q = rope(
                &project("q_proj"),
                &positions,
                shape.heads,
                &inv_freq,
                false,
            );
            let k = rope(
                &project("k_proj"),
                &positions,
                shape.kv_heads,
                &inv_freq,
                false,
            );
            let (q, mut k, mut v) = (f32s(&q), f32s(&k), project("v_proj"));
            if stored == KvStored::F16 {
                (k, v) = (halves(&k), halves(&v));
            }
            let attended = attention_prefill(shape, &q, &k, &v, masks.layer(layer as usize), 0).o;
            let o_proj = self.matrix(&name("self_attn.o_proj.weight"));
            add(
                &mut hidden,
                &matmul(
                    &f32s(&attended),
                    &o_proj,
                    shape.heads * shape.head_dim,
                    None,
                ),
            );
            let normed = self.norm(&hidden, &name("post_attention_layernorm.weight"));
            let gate = matmul(
                &normed,
                &self.matrix(&name("mlp.gate_proj.weight")),
                hidden_dim,
                None,
            );
            let up = matmul(
                &normed,
                &self.matrix(&name("mlp.up_proj.weight")),
                hidden_dim,
                None,
            );
            let gated = f32s(&swiglu(&f32s(&gate), &f32s(&up)));
            let down = self.matrix(&name("mlp.down_proj.weight"));
            add(
                &mut hidden,
                &matmul(&gated, &down, config.ffn_dim as usize, None),
            );
        }
        let normed = self.norm(&hidden, FINAL_NORM);
        matmul(&normed, &self.matrix(config.lm_head()), hidden_dim, None)
    }

    fn matrix(&self, name: &str) -> Vec<f64> {
        self.weights[name].iter().copied().map(f64::from).collect()
    }

    fn norm(&self, hidden: &[f64], name: &str) -> Vec<f32> {
        f32s(&rms_norm(
            &f32s(hidden),
            &self.weights[name],
            self.config().rms_norm_eps,
        ))
    }
}

fn add(hidden: &mut [f64], more: &[f64]) {
    hidden
        .iter_mut()
        .zip(more)
        .for_each(|(hidden, more)| *hidden += more);
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "activations are f32 in the engine"
)]
fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn halves(values: &[f32]) -> Vec<f32> {
    values
        .iter()
        .map(|&value| f16::from_f32(value).to_f32())
        .collect()
}
