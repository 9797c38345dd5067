//! CUDA kernels and their typed launchers.
//!
//! The sources in `cu/` are assembled behind the prelude that `moa_mask::abi` generates and compiled by NVRTC at
//! run time, so that building this crate needs no CUDA toolkit and running it needs no particular one. One
//! kernel has one stem: `reference/src/x.rs`, `shaders-wgsl/wgsl/x.wgsl`, `cu/x.cu`.
//!
//! Today this crate holds the shape that launchers will have, and finds out whether there is a device. It
//! deliberately launches nothing yet: every command of the compiler runs on the CPU.

mod error;
mod probe;
mod source;

pub use error::{CudaError, Result};
pub use probe::{DeviceInfo, probe};
pub use source::{Kernel, KernelConfig};
