//! Decode throughput at the memory limit: random-weight models of published shapes, dense and under a plan, each at its largest batch.
//!
//! The same kernels and weights serve both; a dense cache is a plan that hides nothing. Caches are filled with noise instead of a
//! prefill, lengths begin near the declared context. A small model is compared with the CPU first. `throughput [SHAPE...]`, by
//! default `7b` and `8b`; without a device it says why and does nothing.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a bench prints its table, and stops at the first error"
)]

#[path = "../tests/model/mod.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod model;

use std::sync::Arc;

use half::bf16;
use moa_cuda_engine::{Engine, EngineError, EngineOptions, Model};
use moa_format::{Family, ModelConfig, RopeConfig};
use moa_kernels::{CudaError, Gpu};
use moa_lm::{Cpu, Lm};
use moa_mask::density::kv_density;
use moa_mask::{HeadRule, KvFormat, MaskGrid, ModelMasks};

/// Device memory left for the activations of a prefill chunk.
const RESERVE_BYTES: usize = 3 << 29;

/// Steps that are timed, and steps before.
const STEPS: usize = 24;
const WARM: usize = 4;

fn main() {
    let gpu = match Gpu::open(0, None) {
        Ok(gpu) => Arc::new(gpu),
        Err(error) => {
            println!("no device: {error}; {}", error.hint());
            return;
        }
    };
    println!("{:?}", gpu.info());
    check(&gpu);
    println!(
        "| model | context | cache | kv_density | batch | ms a step | tokens/s | to dense | KV GiB | peak GiB | peak at dense's batch |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for name in ["7b", "8b"] {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            time_model(&gpu, name);
        }
    }
}

/// A small model of the same kind against the CPU, decoded across a wrapped ring.
fn check(gpu: &Arc<Gpu>) {
    let source = model::random(8, 2, 128);
    let cpu = Lm::load(Cpu, &source, &()).unwrap();
    let device = Arc::new(Model::load(gpu.clone(), &source).unwrap());
    let masks = plan(cpu.config(), 400, 0.5);
    let text = model::tokens(380, 504, 3);
    let options = EngineOptions {
        context: 400,
        batch: 2,
        chunk: 128,
        format: KvFormat::Sixteen,
    };
    let mut engine = Engine::new(device, Some(&masks), options).unwrap();
    engine.prefill(&[&text[..379]]).unwrap();
    let actual = engine.feed(&text[379..]).unwrap().remove(0);
    let expected = cpu.logits(&text, Some(&masks), &()).unwrap();
    let expected = &expected[379 * 504..];
    let largest = expected.iter().fold(0.0f32, |top, x| top.max(x.abs()));
    let error = actual
        .iter()
        .zip(expected)
        .fold(0.0f32, |top, (a, b)| top.max((a - b).abs()));
    assert!(error < 0.02 * largest, "off by {error} of {largest}");
    println!(
        "checked against the CPU: largest error {:.2e} of the largest logit",
        error / largest
    );
}

fn config(name: &str) -> ModelConfig {
    let (ffn_dim, kv_heads, vocab_size, theta) = match name {
        "7b" => (11008, 32, 32000, 1e4),
        _ => (14336, 8, 128_256, 5e5),
    };
    ModelConfig {
        family: Family::Llama,
        layers: 32,
        hidden_dim: 4096,
        ffn_dim,
        heads: 32,
        kv_heads,
        head_dim: 128,
        vocab_size,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta,
            scaling: None,
        },
        tied_embeddings: false,
        qkv_bias: false,
        max_context: 16384,
        bos: None,
        eos: vec![],
    }
}

/// Spans from half to one and a half of the density, head by head; each layer begins with another head.
fn plan(config: &ModelConfig, context: u32, density: f64) -> ModelMasks {
    let heads = config.kv_heads;
    let rules: Vec<Vec<HeadRule>> = (0..config.layers)
        .map(|layer| {
            (0..heads)
                .map(|head| {
                    let rank = f64::from((head + layer) % heads) / f64::from((heads - 1).max(1));
                    let span = density * (0.5 + rank) * f64::from(context);
                    HeadRule::Exact {
                        span: ((span / 64.0).round() as u32 * 64).max(128),
                    }
                })
                .collect()
        })
        .collect();
    ModelMasks::from_rules(&rules, context, MaskGrid::default()).unwrap()
}

struct Run {
    batch: usize,
    ms: f32,
    kv_gib: f64,
    peak_gib: f64,
}

const GIB: f64 = (1u64 << 30) as f64;

/// `None` when the batch does not fit.
fn run(
    model: &Arc<Model>,
    masks: &ModelMasks,
    options: EngineOptions,
    noise: &[bf16],
) -> Option<Run> {
    let gpu = model.gpu();
    gpu.trim().unwrap();
    gpu.peak_bytes().unwrap();
    let made = Engine::new(model.clone(), Some(masks), options);
    let mut engine = match made {
        Ok(engine) => engine,
        Err(EngineError::Cuda(CudaError::OutOfMemory { .. })) => return None,
        Err(error) => panic!("{error}"),
    };
    let predicted = model
        .kv_shape()
        .batch_bytes(
            masks,
            options.context,
            options.batch as u32,
            options.chunk as u32,
            options.format,
        )
        .unwrap();
    assert_eq!(
        engine.kv_bytes(),
        predicted,
        "predicted bytes are allocated"
    );
    engine
        .fill(noise, options.context - (STEPS + WARM) as u32 - 8)
        .unwrap();
    for _ in 0..WARM {
        engine.advance().unwrap();
    }
    gpu.synchronize().unwrap();
    let ms = gpu
        .time_ms(|| {
            for _ in 0..STEPS {
                engine.advance().map_err(|error| match error {
                    EngineError::Cuda(error) => error,
                    error => panic!("{error}"),
                })?;
            }
            Ok(())
        })
        .unwrap()
        / STEPS as f32;
    assert!(engine.is_finite().unwrap(), "logits are numbers");
    Some(Run {
        batch: options.batch,
        ms,
        kv_gib: predicted.total() as f64 / GIB,
        peak_gib: gpu.peak_bytes().unwrap() as f64 / GIB,
    })
}

/// The largest batch that leaves the reserve free.
fn at_the_limit(
    model: &Arc<Model>,
    masks: &ModelMasks,
    options: EngineOptions,
    noise: &[bf16],
    free: usize,
) -> Run {
    let one = model
        .kv_shape()
        .batch_bytes(masks, options.context, 1, 0, options.format)
        .unwrap();
    let mut batch = (free - RESERVE_BYTES) / one.total() as usize;
    loop {
        if let Some(run) = run(model, masks, EngineOptions { batch, ..options }, noise) {
            return run;
        }
        batch -= 1;
    }
}

fn time_model(gpu: &Arc<Gpu>, name: &str) {
    let mut state = 1u32;
    let noise: Vec<bf16> = (0..(1 << 22) + 37)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect();
    let small: Vec<bf16> = noise
        .iter()
        .map(|x| bf16::from_f32(x.to_f32() * 0.03))
        .collect();
    let model = Arc::new(Model::random(gpu.clone(), config(name), &small).unwrap());
    gpu.trim().unwrap();
    let free = gpu.memory().unwrap().0;
    for context in [8192, 16384] {
        let sixteen = EngineOptions {
            context,
            batch: 1,
            chunk: 2048,
            format: KvFormat::Sixteen,
        };
        let int8 = EngineOptions {
            format: KvFormat::Int8,
            ..sixteen
        };
        let dense = ModelMasks::dense(32, model.config().kv_heads as usize);
        let half = plan(model.config(), context, 0.5);
        let base = at_the_limit(&model, &dense, sixteen, &noise, free);
        let base_rate = base.batch as f32 / base.ms;
        for (label, masks, options) in [
            ("dense, 16 bits", &dense, sixteen),
            ("MoA, 16 bits", &half, sixteen),
            ("MoA, int8", &half, int8),
        ] {
            let own = if std::ptr::eq(masks, &raw const dense) {
                None
            } else {
                Some(at_the_limit(&model, masks, options, &noise, free))
            };
            let best = own.as_ref().unwrap_or(&base);
            let same = EngineOptions {
                batch: base.batch,
                ..options
            };
            let same = run(&model, masks, same, &noise).map_or(f64::NAN, |run| run.peak_gib);
            let rate = best.batch as f32 / best.ms;
            println!(
                "| {name} | {context} | {label} | {:.3} | {} | {:.2} | {:.0} | {:.2} | {:.1} | {:.1} | {same:.1} |",
                kv_density(masks.iter(), context),
                best.batch,
                best.ms,
                rate * 1e3,
                rate / base_rate,
                best.kv_gib,
                best.peak_gib,
            );
        }
    }
}
