//! The whole model against vectors of an independent `PyTorch` program, and against its own finite differences.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where something is wrong, and prints what it measured"
)]

mod fixture;
mod smollm2;
mod tiny;
