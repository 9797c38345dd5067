//! What the compiler writes and the browser reads: model shapes, plans, manifests, shards, quantized tensors.
//!
//! Bytes in, bytes out: this crate opens no file, asks no clock and knows no GPU, and it builds for wasm32.
//! Nothing that it reads is trusted: every length, offset and count is checked before use, and wrong bytes
//! give a [`FormatError`], never a panic. It deliberately has no opinion on where plans come from
//! (`moa-solve`) or how weights are read from a checkpoint (`moa-model`). `docs/plan-format.md` describes every
//! file field by field.

mod error;
mod hash;
mod import;
mod model;
mod plan;
mod rope;

pub use error::{FormatError, Result};
pub use hash::sha256_hex;
pub use import::ImportOptions;
pub use model::{
    EMBEDDING, FINAL_NORM, Family, LM_HEAD, ModelConfig, TensorRole, TensorSpec, layer_tensor,
    tensors,
};
pub use plan::{MAX_NAME, PLAN_VERSION, Plan, Provenance};
pub use rope::{RopeConfig, RopeScaling};
