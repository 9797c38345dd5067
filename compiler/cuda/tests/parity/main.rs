//! The same model on the CPU and on a CUDA device: logits, losses, gradients, every curve, sessions, failures. Shown as ignored without
//! `MOA_TEST_CUDA=yes`.
//!
//! `MOA_FIXTURES` names the folder of the tiny checkpoints where the sources are not at hand.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where something is wrong, and prints what it measured"
)]

mod failures;
mod fixture;
mod layer;
mod profiles;
mod sessions;
mod smollm2;
