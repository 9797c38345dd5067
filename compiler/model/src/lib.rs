//! Checkpoints as they are published, made into one thing: a checked shape, weights under Hugging Face's
//! names, a tokenizer with its chat template.
//!
//! [`Checkpoint::open`] takes a Hugging Face folder (config.json with one or many safetensors) or a single
//! GGUF file. What the engines do not compute (other architectures, mixtures of experts, a sliding window of
//! the model's own, unknown rope scalings) is refused by name, and so is everything that contradicts itself:
//! no number in a file is trusted before it is checked, and the bounded reader of a GGUF header runs before
//! anything else sees the file.
//!
//! It deliberately downloads nothing, writes nothing and runs no model; quantizing for the bundle is the
//! compiler's business, which finds the source's raw blocks in [`SourceTensor`].

mod checkpoint;
mod error;
mod file;
mod folder;
mod gguf;
mod tensor;
mod tokenizer;
mod weights;

pub use checkpoint::{Checkpoint, SourceFormat};
pub use error::{ModelError, Result};
pub use tensor::{SourceTensor, SourceType};
pub use tokenizer::{ChatTokenizer, Message};
