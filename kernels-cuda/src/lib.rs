//! CUDA kernels and their typed launchers.
//!
//! The sources in `cu/` are assembled behind the prelude that `moa_mask::abi` generates and compiled by NVRTC at
//! run time to machine code for the device that is there, so that building this crate needs no CUDA toolkit. One
//! kernel has one stem: `reference/src/x.rs`, `shaders-wgsl/wgsl/x.wgsl`, `cu/x.cu`.
//!
//! It deliberately holds no model: what is here are kernels that can be launched, tested against their twins and timed. The compiler's
//! CUDA device is built from them.

mod argmax;
mod attention;
mod bandwidth;
mod cache;
mod decode;
mod error;
mod extent;
mod gpu;
mod graph;
mod influence;
mod influence_entries;
mod launch;
mod losses;
mod matmul;
mod prefill;
mod probe;
mod qkv;
mod rows;
mod slots;
mod source;

pub use argmax::{Argmax, GreedyState};
pub use attention::{Attention, AttentionGradients, AttentionShape};
pub use bandwidth::read_gigabytes_per_sec;
pub use cache::Cache;
pub use decode::{Decode, DecodeWorkspace};
pub use error::{CudaError, Result};
pub use extent::Layout;
pub use gpu::{Buffer, Element, Gpu, Mark};
pub use graph::Graph;
pub use influence::{Influence, InfluenceInputs, InfluenceShape, RowDots};
pub use influence_entries::{EntryInputs, EntryMaps, InfluenceEntries, RowStatistics};
pub use losses::Losses;
pub use matmul::{Matmul, MatmulShape, Value, ValueType};
pub use prefill::{Chunk, ChunkPart, Prefill};
pub use probe::{DeviceInfo, probe};
pub use qkv::{QkvRows, QkvTables};
pub use rows::{Rows, Turn};
pub use slots::{CacheSlots, HeadShape, KvBuffers, RequestSlots};
pub use source::{ElementType, Kernel, KernelConfig};
