//! The one definition of the MoA mask, shared by the compiler and the browser.
//!
//! Every KV head keeps a few *sink* keys, the first of the text, and a sliding *window* of the most
//! recent ones. How wide the window is follows from the head's rule and the declared context length:
//!
//! ```text
//! S(N)   = min(max(ceil_to_block(alpha + beta*N), sink + block), ceil_to_block(N))
//! window = max(S - sink, 1)                        the current key counted
//! attends(q, k)  =  k <= q  and  (k < sink  or  q - k < window)
//!
//!        k ->  0     sink                                      q
//!              [######]........................[###############]
//!               sink          not visible            window
//! ```
//!
//! From that one predicate follow the block ranges that kernels loop over ([`ranges`]), the ring that
//! holds a head's keys ([`ring`]), the two densities ([`density`]) and the exact bytes of a cache
//! ([`memory`]). Kernels receive spans and never compute them; the constants and structs that they share
//! with the host are written once in [`abi`].
//!
//! This crate knows no GPU, no file and no clock, and it deliberately builds no mask tensor: outside a
//! head's ranges nothing is loaded, so there is nothing to mask.

pub mod abi;
pub mod density;
mod error;
mod head;
pub mod memory;
pub mod ranges;
pub mod ring;
mod rule;

pub use error::{MaskError, Result};
pub use head::{HeadMask, ModelMasks};
pub use memory::{KvBytes, KvFormat, KvShape, PREFILL_CHUNK, SLACK};
pub use ranges::{KeyRanges, Tile};
pub use ring::{Commit, RingLayout};
pub use rule::{DEFAULT_BLOCK, DEFAULT_SINK, HeadRule, MaskGrid};
