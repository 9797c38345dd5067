//! What an effort level means in lengths and samples.

use crate::cli::{Effort, ProfileArgs};

/// Lengths to profile at and samples of each kind at each length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Preset {
    pub(crate) lengths: Vec<u32>,
    pub(crate) samples: usize,
}

/// The preset of `args`, with what was typed in its place; no length beyond `context`.
pub(crate) fn preset(args: &ProfileArgs, context: u32) -> Preset {
    let (lengths, samples): (&[u32], usize) = match args.effort {
        Effort::Quick => (&[1024, 2048], 2),
        Effort::Standard => (&[2048, 4096], 8),
        Effort::Thorough => (&[2048, 4096, 8192], 16),
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
    }
}
