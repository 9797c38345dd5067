//! The engine on wgpu: a bundle's weights on a device, K and V in rings as the plan says, tokens out.
//!
//! ```text
//! manifest + plan + context -> Setup -> Gpu (limits from Setup) -> Engine -> weights -> prefill, decode, rewind
//!                     another Setup -> Weights of that engine -> another Engine -> prefill, decode, rewind
//! ```
//!
//! One crate for native and browser: they differ in where bytes come from ([`bundle`] natively, JavaScript through
//! the bindings in a browser) and in nothing else. There is deliberately no CPU fallback, and no tokenizer: the
//! engine takes and gives token ids.

mod attend;
mod buffers;
mod create;
mod decode;
mod engine;
mod error;
mod fused;
#[cfg(not(target_arch = "wasm32"))]
mod generate;
mod gpu;
#[cfg(not(target_arch = "wasm32"))]
mod pace;
mod pipelines;
mod portion;
#[cfg(not(target_arch = "wasm32"))]
mod probe;
mod program;
mod sampler;
mod separate;
mod setup;
mod share;
mod signal;
mod snapshot;
mod step;
#[cfg(not(target_arch = "wasm32"))]
mod timing;
mod tune;
mod weight_layout;
mod weights;

#[cfg(target_arch = "wasm32")]
pub mod bindings;
#[cfg(not(target_arch = "wasm32"))]
pub mod bundle;

pub use buffers::{Ledger, MAX_DECODE_BATCH};
pub use create::EngineOptions;
pub use engine::Engine;
pub use error::{EngineError, Result};
#[cfg(not(target_arch = "wasm32"))]
pub use generate::{Generated, Progress, Request, StopReason, generate};
pub use gpu::{Extras, Gpu, GpuOptions, Needs};
pub use moa_shaders::{Products, Variant, VariantError};
#[cfg(not(target_arch = "wasm32"))]
pub use probe::{Ceilings, probe};
pub use program::DecodeKernels;
pub use sampler::{Sampler, SamplingOptions};
pub use setup::{KvReport, Setup};
pub use share::Weights;
pub use snapshot::RingCopy;
#[cfg(not(target_arch = "wasm32"))]
pub use timing::KernelTime;
