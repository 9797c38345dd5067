//! What an effort level means in lengths, samples and steps.

use crate::cli::{Effort, ProfileArgs};

/// Lengths to profile at and samples of each kind at each length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Preset {
    pub(crate) lengths: Vec<u32>,
    pub(crate) samples: usize,
    /// Samples of each kind at each length that a step of a search profiles, and that its plans are measured on.
    pub(crate) step_samples: usize,
    /// Tightening steps of a search in steps.
    pub(crate) steps: usize,
    /// Further steps at the density.
    pub(crate) rounds: usize,
}

/// The preset of `args`, with what was typed in its place; no length beyond `context`.
pub(crate) fn preset(args: &ProfileArgs, context: u32) -> Preset {
    let (lengths, [samples, step_samples, steps, rounds]): (&[u32], [usize; 4]) = match args.effort
    {
        Effort::Quick => (&[1024, 2048], [2, 1, 2, 1]),
        Effort::Standard => (&[1024, 2048, 4096], [6, 2, 2, 6]),
        Effort::Thorough => (&[1024, 2048, 4096, 8192], [12, 4, 3, 12]),
    };
    let mut lengths: Vec<u32> = if args.lengths.is_empty() {
        // A short context is profiled at its own length: better one profile than none.
        let fitting: Vec<u32> = lengths
            .iter()
            .copied()
            .filter(|&length| length <= context)
            .collect();
        if fitting.is_empty() {
            vec![context]
        } else {
            fitting
        }
    } else {
        args.lengths.clone()
    };
    lengths.sort_unstable();
    lengths.dedup();
    Preset {
        lengths,
        samples: args.samples.unwrap_or(samples),
        step_samples,
        steps,
        rounds,
    }
}
