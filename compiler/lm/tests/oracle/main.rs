//! The whole model against vectors of an independent PyTorch program, and against its own finite differences.

mod fixture;
mod smollm2;
mod tiny;
