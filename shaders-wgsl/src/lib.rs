//! The WGSL kernels: their sources (`wgsl/`), how a source is assembled, and what each kernel binds.
//!
//! A source is the prelude that `moa_mask::abi` generates, constants of the model's shape, shared parts, and the
//! kernel, in that order; variants differ by which shared part they get. This crate knows no GPU API, creates no
//! pipeline and runs nothing: `moa-runtime-web` does. Every kernel stays within WebGPU's default limits; what needs more
//! than its default features is a [`Variant`], and one choice of [`Lanes`] has larger workgroups.

mod assemble;
mod choices;
mod kernel;
mod permutations;
mod shape;
mod variant;
mod work_list;

pub use choices::{Inputs, KvTarget, Lanes, MatmulThreads, VectorType, WeightType};
pub use kernel::{Access, Binding, Kernel};
pub use permutations::{dialects, head_permutations, permutations, plausible_params};
pub use shape::{CHECKED_SHAPES, HeadShape, ShapeError};
pub use variant::{Compiler, Dialect, Products, Variant, VariantError};
pub use work_list::WorkList;

/// The entry point of every kernel.
pub const ENTRY_POINT: &str = "main";

/// Rows of one workgroup of [`Kernel::Matmul`]; tokens by [`MatmulThreads::tokens`].
pub const MATMUL_TILE: u32 = 64;
/// Rows of one workgroup of [`Kernel::Matvec`].
pub const MATVEC_ROWS: u32 = 16;
/// Query rows (positions times query heads of the group) of one workgroup of [`Kernel::AttentionPrefill`].
pub const ATTENTION_ROWS: u32 = 32;
/// Workgroups of [`Kernel::ArgmaxParts`]: parts of the logits.
pub const ARGMAX_PARTS: u32 = 64;
/// Threads of a workgroup in the kernels that work element by element.
pub const ELEMENT_THREADS: u32 = 64;
/// Threads of the largest workgroup that a kernel has a use for; WebGPU's default is 256.
pub const WIDE_WORKGROUP: u32 = 512;
