//! Checkpoints, random models and devices.

use std::path::PathBuf;

use moa_cuda::Cuda;
use moa_format::{Family, ModelConfig, RopeConfig, TensorSpec};
use moa_lm::{Cpu, Device, Lm, WeightSource, WeightsFrom, made_weights};
use moa_mask::{HeadRule, MaskGrid, ModelMasks};
use moa_model::Checkpoint;
use moa_reference::weights;

pub(crate) fn fixtures() -> PathBuf {
    std::env::var_os("MOA_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"),
        PathBuf::from,
    )
}

pub(crate) fn cuda<T: moa_kernels::Element + std::fmt::Debug + Send + Sync>() -> Cuda<T> {
    // Compiled kernels are shared by all tests.
    let cache = std::env::temp_dir().join("moa-test-kernels");
    Cuda::open(Some(&cache)).unwrap_or_else(|error| panic!("{error}; {}", error.hint()))
}

/// A checkpoint as a source of weights.
pub(crate) fn checkpoint(path: PathBuf) -> impl WeightSource {
    let checkpoint = Checkpoint::open_weights(path).unwrap();
    let config = checkpoint.config().clone();
    let read = move |name: &str| checkpoint.tensor(name).and_then(|tensor| tensor.to_f32());
    WeightsFrom::new(config, read)
}

pub(crate) fn tiny(name: &str) -> impl WeightSource {
    checkpoint(fixtures().join(name))
}

/// Random weights of a given shape, the same for the same names.
pub(crate) fn random_of(config: ModelConfig) -> impl WeightSource {
    made_weights(config, |spec: &TensorSpec| {
        let len = usize::try_from(spec.len()).unwrap();
        weights::random(&spec.name, len, spec.cols as usize, 2.0)
    })
}

/// A small random model: layers, query heads, KV heads, channels.
pub(crate) fn random(layers: u32, heads: u32, kv_heads: u32, head_dim: u32) -> impl WeightSource {
    random_of(ModelConfig {
        family: Family::Llama,
        layers,
        hidden_dim: heads * head_dim,
        ffn_dim: heads * head_dim * 2,
        heads,
        kv_heads,
        head_dim,
        vocab_size: 601,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 1e4,
            scaling: None,
        },
        tied_embeddings: kv_heads == 1,
        qkv_bias: kv_heads == 1,
        max_context: 8192,
        bos: None,
        eos: vec![],
    })
}

pub(crate) fn load<D: Device>(device: D, source: &dyn WeightSource) -> Lm<D> {
    Lm::load(device, source, &()).unwrap()
}

pub(crate) fn on_cpu(source: &dyn WeightSource) -> Lm<Cpu> {
    load(Cpu, source)
}

/// Ids that look like a text with repetitions.
pub(crate) fn ids(len: u32, vocab: u32) -> Vec<u32> {
    (0..len)
        .map(|i| (i * i % 97 + 31 * (i % 13) + i / 50) % vocab)
        .collect()
}

/// Masks of explicit spans `[layer][kv_head]`.
pub(crate) fn exact_masks(spans: &[Vec<u32>], sink: u32, context: u32) -> ModelMasks {
    let rules: Vec<Vec<HeadRule>> = spans
        .iter()
        .map(|layer| layer.iter().map(|&span| HeadRule::Exact { span }).collect())
        .collect();
    ModelMasks::from_rules(&rules, context, MaskGrid::new(sink, sink.max(1)).unwrap()).unwrap()
}

/// Spans that differ from head to head, all of them hiding something of a long text; in whole steps of `step` tokens.
pub(crate) fn ragged(config: &ModelConfig, sink: u32, context: u32, step: u32) -> ModelMasks {
    let spans: Vec<Vec<u32>> = (0..config.layers)
        .map(|layer| {
            (0..config.kv_heads)
                .map(|head| sink + 1 + (layer * 53 + head * 91) % (context / 2))
                .map(|span| span.next_multiple_of(step))
                .collect()
        })
        .collect();
    exact_masks(&spans, sink, context)
}

/// Largest difference, in parts of the largest expected magnitude.
pub(crate) fn part<A: Copy + Into<f64>, B: Copy + Into<f64>>(actual: &[A], expected: &[B]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let (mut worst, mut largest) = (0.0f64, 0.0f64);
    for (&actual, &expected) in actual.iter().zip(expected) {
        let (actual, expected): (f64, f64) = (actual.into(), expected.into());
        assert!(actual.is_finite() && expected.is_finite());
        worst = worst.max((actual - expected).abs());
        largest = largest.max(expected.abs());
    }
    worst / largest.max(f64::MIN_POSITIVE)
}
