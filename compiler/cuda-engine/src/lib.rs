//! Many texts at once on a CUDA device: generation and likelihoods, dense or under a plan, as an evaluation needs them.
//!
//! [`Model`] holds weights in bf16; an [`Engine`] adds caches for a batch of requests of one declared context length. Prompts are
//! packed into chunks that attend over the rings as they were before and over themselves; a decoded token of the whole batch is one
//! recorded graph, in which the device chooses tokens, counts lengths and ends texts.
//!
//! Residual streams are f32, everything that products and attention read is bf16, sums are f32. A dense engine differs from one under
//! a plan in nothing but its masks. It deliberately computes no gradients (that is the profile's device) and samples nothing: callers
//! that sample take logits.

mod engine;
mod error;
mod generate;
mod model;
mod step;

pub use engine::{Engine, EngineOptions};
pub use error::{EngineError, Result};
pub use generate::{Answer, Decided, Likelihood, Question};
pub use moa_kernels::{CudaError, Gpu};
pub use model::Model;
