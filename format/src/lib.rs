//! What the compiler writes and the browser reads: model shapes, plans, manifests, shards, quantized tensors.
//!
//! Bytes in, bytes out: this crate opens no file, asks no clock and knows no GPU, and it builds for wasm32.
//! Nothing that it reads is trusted: every length, offset and count is checked before use, and wrong bytes
//! give a [`FormatError`], never a panic. It deliberately has no opinion on where plans come from
//! (`moa-solve`) or how weights are read from a checkpoint (`moa-model`). `docs/plan-format.md` describes every
//! file field by field.

mod error;
mod gguf_blocks;
mod groups;
mod hash;
mod import;
mod json;
mod manifest;
mod model;
mod piece;
mod plan;
mod plan_bin;
mod plan_entry;
mod q4_search;
mod quant;
mod rope;
mod shard;

pub use error::{FormatError, Result};
pub use gguf_blocks::{BlockType, repack};
pub use hash::{hex, sha256_hex};
pub use import::ImportOptions;
pub use manifest::{
    FileEntry, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, SCHEMA_VERSION, TokenizerFiles,
};
pub use model::{
    EMBEDDING, FINAL_NORM, Family, LM_HEAD, ModelConfig, TensorRole, TensorSpec, layer_tensor,
    tensors,
};
pub use piece::{ALIGN, DType, MAX_PIECE_BYTES, PieceLayout, split_rows};
pub use plan::{MAX_NAME, PLAN_VERSION, Plan, Provenance};
pub use plan_bin::{MAX_PLAN_BYTES, PLAN_BIN_VERSION};
pub use plan_entry::{KV_VALUE_BYTES, PlanAt, PlanEntry, plan_entry, plan_file};
pub use quant::{PackedPiece, pack, unpack};
pub use rope::{RopeConfig, RopeScaling};
pub use shard::{
    CHUNK_BYTES, FinishedShard, MAX_SHARD_BYTES, Piece, Shard, ShardBuilder, TensorEntry, Weights,
    chunk_sha256, shard_file,
};
