//! f64 twins of every kernel: plain loops that mirror the kernels' definitions, and the comparator.
//!
//! f32 in, f64 inside, f64 out. Slow on purpose, without any blocking or reordering, so that each can be read
//! against its definition in one go. In no shipped crate: tests only, and so free to panic on wrong shapes.

#![expect(
    clippy::needless_range_loop,
    reason = "indices stay as in the definitions"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes of test cases fit in u32, and tests round to f32 on purpose"
)]

pub mod argmax;
pub mod attention_backward;
pub mod attention_decode;
pub mod attention_prefill;
pub mod codes;
pub mod compare;
pub mod cross_entropy;
pub mod embedding;
pub mod gate_up;
pub mod influence;
pub mod influence_entries;
pub mod kv_commit;
pub mod matmul;
pub mod matvec;
pub mod merge_lse;
pub mod project;
pub mod qkv;
pub mod qkv_rows;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod softmax;
pub mod swiglu;
pub mod weights;
