//! Every WGSL kernel against its f64 twin on a device with default limits: inputs seeded and spiked, outputs
//! poisoned with NaN, guard words behind every buffer, and for each comparison a control that must fail. Tolerances
//! stand beside the tests; the measured maxima in docs/kernels.md are what `--nocapture` prints.

#![expect(clippy::print_stdout, reason = "measured errors, for docs/kernels.md")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod attention;
mod cache;
mod code_words;
mod codes;
mod file;
mod fused;
mod gates;
mod matrices;
mod rows;
mod sampling;

use moa_mask::abi::StepState;

/// The step state as words.
pub(crate) fn state(start: u32, len: u32) -> [u32; 4] {
    bytemuck::cast(StepState {
        start,
        len,
        step: 0,
        stopped: 0,
    })
}

/// Bit patterns: equal only where values are, NaN included.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
