//! A CUDA device for `moa-lm`: the same model, profile and sessions, computed by the kernels of `moa-kernels`.
//!
//! Residual streams, logits and whatever is added up are f32; what products and attention read is 16-bit, and every sum is f32. Layer
//! inputs are kept in f32 and all else of a layer is computed again on the way back, so that a profile of a Llama-3-8B's shape at 8192
//! tokens needs less than 6 GiB beside the weights.
//!
//! It deliberately chooses no device for anybody and knows no command line: whoever cannot open one here uses `moa_lm::Cpu`.

mod attention;
mod device;
mod stages;

pub use device::{Cuda, Values};
pub use moa_kernels::{CudaError, DeviceInfo};
pub use stages::Stage;

/// The device that programs use. f16 rather than bf16: its 11 bits keep profiles eight times closer to those of f32, and gradients are scaled
/// into its range; a model whose activations leave it ends with [`moa_lm::LmError::NotFinite`].
pub type Gpu = Cuda<half::f16>;
