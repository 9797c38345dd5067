//! A language model on a device: forward, activation backward, influence, sessions, generation.
//!
//! [`Lm`] is a list of explicit operations over a [`Device`], written once:
//!
//! ```text
//! x    = embedding[ids]
//! x   += attention(rope(rms_norm(x) Wq), rope(rms_norm(x) Wk), rms_norm(x) Wv) Wo         for every layer
//! x   += (silu(rms_norm(x) Wgate) * (rms_norm(x) Wup)) Wdown
//! logits = rms_norm(x) Wlm_head
//! ```
//!
//! [`Lm::influence`] walks the layers back from the loss, recomputing each from its saved inputs, and reads off
//! what every window of every KV head would cost. [`Session`] keeps keys and values in the rings of `moa-mask`.
//!
//! This crate deliberately reads no files ([`WeightSource`] gives weights), draws no progress ([`Observer`] is
//! told), knows no tokenizer, and has no gradients of weights.

mod cpu;
mod device;
mod error;
mod estimator;
mod generate;
mod lm;
mod loss;
mod observer;
mod profile;
#[cfg(test)]
mod random_model;
mod sample;
mod sampler;
mod session;
mod weights;

pub use cpu::Cpu;
pub use device::{
    Attended, AttentionBackward, AttentionGradients, AttentionShape, Device, Keep, KvCache,
    LayerInfluence, Linear, Projected, RopeTable, Turn,
};
pub use error::{LmError, Result, WeightError};
pub use estimator::{BlockMaps, Estimator, Influence, LossKind, ProfileOptions};
pub use generate::{GenerateOptions, Generated, StopReason, generate};
pub use lm::{KvPrecision, Lm, logit_rows};
pub use observer::{Observer, Phase, Step};
pub use sample::{Sample, Targets};
pub use sampler::{Sampler, SamplerOptions, argmax};
pub use session::Session;
pub use weights::{WeightSource, WeightsFrom, made_weights};
