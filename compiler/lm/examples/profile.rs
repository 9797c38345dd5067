//! Times one influence profile and shows its peak memory: `cargo run -p moa-lm --example profile -- MODEL TOKENS...`
//!
//! The text is random ids and the last eighth carries loss: time and memory depend on the lengths alone.

#![expect(clippy::print_stdout, reason = "an example prints its figures")]

use std::time::Instant;

use moa_lm::{Cpu, Lm, ProfileOptions, Sample, WeightsFrom};
use moa_model::Checkpoint;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: profile MODEL TOKENS...")?;
    let start = Instant::now();
    let checkpoint = Checkpoint::open_weights(model)?;
    let read = |name: &str| checkpoint.tensor(name).and_then(|tensor| tensor.to_f32());
    let source = WeightsFrom::new(checkpoint.config().clone(), read);
    let lm = Lm::load(Cpu, &source, &())?;
    println!("loaded in {:.2} s", start.elapsed().as_secs_f64());
    for tokens in arguments {
        let tokens: u32 = tokens.parse()?;
        let vocab = lm.config().vocab_size;
        let ids: Vec<u32> = (0..tokens)
            .map(|i| i.wrapping_mul(2_654_435_761) % vocab)
            .collect();
        let sample = Sample::new(ids, tokens - tokens / 8);
        let start = Instant::now();
        let loss = lm.loss(&sample, None, &())?;
        let forward = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let influence = lm.influence(&sample, &ProfileOptions::default(), &())?;
        let seconds = start.elapsed().as_secs_f64();
        let drift = (influence.loss - loss).abs();
        println!(
            "{tokens} tokens: forward {forward:.2} s, profile {seconds:.2} s, peak {}, losses differ by {drift:.1e}",
            peak_memory()
        );
    }
    Ok(())
}

/// The high-water mark of resident memory, where the system tells.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".into(), |value| value.trim().to_owned())
}
