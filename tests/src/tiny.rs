//! Tiny random models as bundles in memory, and their forward pass in f64 out of the kernels' twins.

use std::collections::BTreeMap;

use half::f16;
use moa_format::{
    CHUNK_BYTES, DType, EMBEDDING, FINAL_NORM, Family, Manifest, ModelConfig, Plan, Provenance,
    RopeConfig, RopeScaling, ShardBuilder, TensorRole, TensorSpec, Weights, layer_tensor, pack,
    plan_entry, tensors, unpack,
};
use moa_mask::{HeadRule, ModelMasks};
use moa_reference::attention_prefill::{AttentionShape, attention_prefill};
use moa_reference::matmul::matmul;
use moa_reference::rms_norm::rms_norm;
use moa_reference::rope::rope;
use moa_reference::swiglu::swiglu;
use moa_runtime_web::{Engine, EngineOptions, Gpu, GpuOptions, Setup};

use crate::random::Random;

/// A bundle and what its weights mean.
#[derive(Debug, Clone)]
pub struct TinyModel {
    /// The manifest, with the plan under its own name.
    pub manifest: Manifest,
    /// The plan.
    pub plan: Plan,
    /// The shards' bytes.
    pub shards: Vec<Vec<u8>>,
    /// Every tensor as it is stored, dequantized.
    weights: BTreeMap<String, Vec<f32>>,
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
        let mut builder = ShardBuilder::new();
        let mut shards = Vec::new();
        let mut weights = BTreeMap::new();
        for spec in tensors(&config) {
            let (values, dtype) = values(&spec);
            builder
                .begin_tensor(&spec, dtype, "test")
                .expect("a valid spec");
            let mut stored = Vec::with_capacity(values.len());
            while let Some(rows) = builder.next_rows() {
                let range = (rows.start * spec.cols) as usize..(rows.end * spec.cols) as usize;
                let piece = pack(dtype, &values[range], spec.cols).expect("finite weights");
                let rows = rows.end - rows.start;
                stored.extend(unpack(dtype, &piece.bytes, rows, spec.cols).expect("packed above"));
                shards.extend(builder.push_piece(&piece).expect("a piece in order"));
            }
            weights.insert(spec.name, stored);
        }
        let (last, listed) = builder.finish().expect("all tensors");
        shards.extend(last);
        let manifest = manifest(config, &plan, listed);
        // As a reader gets it: written, sealed and checked.
        let json = manifest.to_json().expect("a valid manifest");
        let manifest = Manifest::from_json(json).expect("written above");
        Self {
            manifest,
            plan,
            shards: shards.into_iter().map(|shard| shard.data).collect(),
            weights,
        }
    }

    /// An engine with the weights in it, on a device of this process.
    pub fn engine(&self, context: u32, options: EngineOptions) -> Engine {
        let setup = Setup::new(self.manifest.clone(), self.plan.clone(), context).expect("a setup");
        let options_of_device = GpuOptions {
            default_limits: true,
            low_power: false,
        };
        let gpu = pollster::block_on(Gpu::open(options_of_device, setup.needs()))
            .unwrap_or_else(|error| panic!("MOA_TEST_WGPU=yes, but: {error}"));
        let mut engine = pollster::block_on(Engine::new(gpu, setup, options)).expect("an engine");
        for (index, shard) in self.shards.iter().enumerate() {
            for (chunk, bytes) in shard.chunks(CHUNK_BYTES as usize).enumerate() {
                let offset = chunk as u64 * u64::from(CHUNK_BYTES);
                engine
                    .write_shard(index, offset, bytes)
                    .expect("a chunk of this bundle");
            }
        }
        pollster::block_on(engine.finish_loading()).expect("everything was written");
        engine
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.manifest.model
    }

    /// Logits of every position, `[ids.len(), vocab_size]`, from the twins; K and V are rounded to f16 as caches are.
    pub fn logits(&self, ids: &[u32], masks: &ModelMasks) -> Vec<f64> {
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
            let (q, k, v) = (f32s(&q), halves(&f32s(&k)), halves(&project("v_proj")));
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

fn manifest(config: ModelConfig, plan: &Plan, weights: Weights) -> Manifest {
    let (entry, _) = plan_entry(plan, &config).expect("a plan for this model");
    Manifest {
        name: "tiny".into(),
        model: config,
        tokenizer: None,
        default_plan: plan.name.clone(),
        plans: vec![entry],
        weights,
        files: Vec::new(),
        provenance: Provenance::default(),
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
