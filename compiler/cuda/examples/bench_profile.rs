//! Times whole profiles on the GPU: `bench_profile [smollm2 | llama | all]`. Random weights of each model's shape: time and memory depend on
//! shapes alone.
//!
//! Busy time is the sum of events around every operation; wall time is what a user waits. The last quarter of a text carries loss.

#![expect(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench prints its tables"
)]

use std::error::Error;
use std::time::Instant;

use moa_cuda::{Gpu, Stage};
use moa_format::{Family, ModelConfig, RopeConfig, TensorSpec};
use moa_lm::{Lm, ProfileOptions, Sample, WeightSource, made_weights};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A block of random values, over and over.
fn random(config: ModelConfig) -> impl WeightSource {
    let mut state = 1u32;
    let block: Vec<f32> = (0..(1 << 22) + 3)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32768.0 - 1.0
        })
        .collect();
    made_weights(config, move |spec: &TensorSpec| {
        let len = usize::try_from(spec.len()).unwrap_or(usize::MAX);
        if spec.name.contains("norm") {
            return vec![1.0; len];
        }
        let scale = 1.7 / (spec.cols as f32).sqrt();
        let block: Vec<f32> = block.iter().map(|x| x * scale).collect();
        let mut values = Vec::with_capacity(len);
        while values.len() < len {
            values.extend_from_slice(&block[..block.len().min(len - values.len())]);
        }
        values
    })
}

fn config(sizes: [u32; 8], theta: f64, tied: bool) -> ModelConfig {
    let [
        layers,
        hidden,
        ffn,
        heads,
        kv_heads,
        head_dim,
        vocab,
        max_context,
    ] = sizes;
    ModelConfig {
        family: Family::Llama,
        layers,
        hidden_dim: hidden,
        ffn_dim: ffn,
        heads,
        kv_heads,
        head_dim,
        vocab_size: vocab,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta,
            scaling: None,
        },
        tied_embeddings: tied,
        qkv_bias: false,
        max_context,
        bos: None,
        eos: vec![],
    }
}

fn main() -> Outcome<()> {
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "all".into());
    if wanted != "llama" {
        let shape = [30, 576, 1536, 9, 3, 64, 49_152, 8192];
        run(
            "SmolLM2-135M",
            config(shape, 1e5, true),
            &[2048, 4096, 8192],
            8,
        )?;
    }
    if wanted != "smollm2" {
        let shape = [32, 4096, 14_336, 32, 8, 128, 128_256, 8192];
        run("Llama-3-8B", config(shape, 5e5, false), &[8192], 1)?;
    }
    Ok(())
}

fn run(name: &str, config: ModelConfig, lengths: &[u32], samples: u32) -> Outcome<()> {
    let device = match Gpu::open(None) {
        Ok(device) => device,
        Err(error) => {
            println!("no device: {error}; {}", error.hint());
            return Ok(());
        }
    };
    println!("{name}'s shape on {:?}", device);
    let vocab = config.vocab_size;
    let weights: u64 = moa_format::tensors(&config)
        .iter()
        .map(|spec| spec.len() * 2)
        .sum();
    let start = Instant::now();
    let lm = Lm::load(device, &random(config), &())?;
    println!("loaded in {:.1} s", start.elapsed().as_secs_f64());
    let sample = |len: u32, seed: u32| {
        let ids = (0..len)
            .map(|i| i.wrapping_add(seed * 7919).wrapping_mul(2_654_435_761) % vocab)
            .collect();
        Sample::new(ids, len - len / 4)
    };
    // Kernels are compiled, and algorithms chosen, before anything is timed.
    let of = |per_entry| ProfileOptions {
        per_entry,
        ..ProfileOptions::default()
    };
    lm.influence(&sample(512, 99), &of(true), &())?;
    print!("| N | samples | curves | wall s | busy s |");
    Stage::ALL.iter().for_each(|stage| print!(" {stage:?} |"));
    println!(" influence share | peak - weights, GiB |");
    println!("|{}", "---|".repeat(Stage::ALL.len() + 7));
    for &len in lengths {
        for (options, curves) in [(of(false), "joint"), (of(true), "joint, per-entry")] {
            lm.influence(&sample(len, 98), &options, &())?;
            lm.device().peak_bytes()?;
            let start = Instant::now();
            for seed in 0..samples {
                lm.influence(&sample(len, seed), &options, &())?;
            }
            let wall = start.elapsed().as_secs_f64();
            let peak = lm.device().peak_bytes()?;
            // Measured apart, since events cost time on the host.
            lm.device().start_stages();
            for seed in 0..samples {
                lm.influence(&sample(len, seed), &options, &())?;
            }
            let stages = lm.device().stop_stages()?;
            let busy: f64 = stages.iter().map(|(_, ms)| ms).sum();
            let influence: f64 = stages
                .iter()
                .filter(|(stage, _)| *stage == Stage::Influence)
                .map(|(_, ms)| ms)
                .sum();
            print!(
                "| {len} | {samples} | {curves} | {wall:.3} | {:.3} |",
                busy / 1e3
            );
            for (_, ms) in &stages {
                print!(" {:.3} |", ms / 1e3);
            }
            println!(
                " {:.3} | {:.2} |",
                influence / busy,
                (peak.saturating_sub(weights)) as f64 / f64::from(1 << 30)
            );
        }
    }
    Ok(())
}
