//! What can go wrong between a bundle and its tokens, each with a code for programs and a hint for people.

use moa_format::FormatError;

/// A [`std::result::Result`] with this crate's [`EngineError`].
pub type Result<T> = std::result::Result<T, EngineError>;

/// An engine that cannot be made, or a call that it refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No GPU that speaks WebGPU, or one that gives no device.
    #[error("no WebGPU device: {reason}")]
    NoDevice {
        /// What the API said.
        reason: String,
    },
    /// The model or the context needs more than the device offers.
    #[error("{what} needs {needed} bytes, the device offers {offered}")]
    Limits {
        /// The limit, in WebGPU's words.
        what: &'static str,
        /// What this model at this context takes.
        needed: u64,
        /// What the adapter has, or the default limit where nothing more may be asked for.
        offered: u64,
    },
    /// The device has no room for the buffers.
    #[error("out of GPU memory while allocating {bytes} bytes for {what}")]
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// All bytes of it.
        bytes: u64,
    },
    /// The device is gone: a driver reset, a closed tab, too long a dispatch.
    #[error("the GPU device is lost: {reason}")]
    DeviceLost {
        /// What the API said.
        reason: String,
    },
    /// The API refused something that this crate did: a defect.
    #[error("the GPU refused {what}: {reason}")]
    Gpu {
        /// What was being done.
        what: String,
        /// What the API said.
        reason: String,
    },
    /// A manifest that is damaged, or newer than this program.
    #[error("manifest: {source}")]
    Manifest {
        /// What is wrong with it.
        source: FormatError,
    },
    /// A plan that is damaged, unknown, or made for another model.
    #[error("plan: {source}")]
    Plan {
        /// What is wrong with it.
        source: FormatError,
    },
    /// A chunk of weights whose bytes are not those that were written.
    #[error("weights: {source}")]
    Damaged {
        /// What is wrong with it.
        source: FormatError,
    },
    /// A chunk that does not belong where it was put.
    #[error("chunk at byte {offset} of shard {shard}: {reason}")]
    BadChunk {
        /// Index of the shard.
        shard: usize,
        /// First byte.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Weights are still missing.
    #[error("{missing} of {chunks} chunks of weights are missing")]
    NotLoaded {
        /// Chunks that have not arrived.
        missing: usize,
        /// All chunks.
        chunks: usize,
    },
    /// A model that the kernels do not serve.
    #[error("{what} is {got}, expected {expected}")]
    UnsupportedModel {
        /// The field or tensor.
        what: String,
        /// What the model has.
        got: String,
        /// What would be served.
        expected: &'static str,
    },
    /// A declared context that the model was not trained for.
    #[error("context is {got} tokens, expected 1 to {most}")]
    BadContext {
        /// What was asked for.
        got: u32,
        /// The model's own limit.
        most: u32,
    },
    /// More tokens than the declared context holds.
    #[error("{more} tokens after {len} do not fit in the declared context of {context}")]
    ContextOverflow {
        /// Tokens that are in the cache.
        len: u32,
        /// Tokens that were to follow.
        more: usize,
        /// The declared context M.
        context: u32,
    },
    /// A rewind past the tokens that are still exact.
    #[error("cannot take back {back} tokens, at most {most}")]
    RewindTooFar {
        /// What was asked for.
        back: u32,
        /// What is exact.
        most: u32,
    },
    /// Nothing was prefilled since the start, the last rewind or a broken-off prefill.
    #[error("there are no logits to choose a token from")]
    NoLogits,
    /// A token id that the model does not have.
    #[error("token id {id} at index {index}, expected below {vocab}")]
    BadToken {
        /// The id.
        id: u32,
        /// Where in the list.
        index: usize,
        /// Rows of the embedding.
        vocab: u32,
    },
    /// An argument out of its range.
    #[error("{what} is {got}, expected {expected}")]
    BadArgument {
        /// The argument.
        what: &'static str,
        /// Its value.
        got: String,
        /// What would have been accepted.
        expected: &'static str,
    },
}

impl EngineError {
    /// The code that programs match on; the same in JavaScript.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoDevice { .. } => "webgpu-unavailable",
            Self::Limits { .. } => "limits",
            Self::OutOfMemory { .. } => "out-of-memory",
            Self::DeviceLost { .. } => "device-lost",
            Self::Gpu { .. } => "internal",
            Self::Manifest { .. } => "bad-manifest",
            Self::Plan { .. } => "bad-plan",
            Self::Damaged { .. } => "hash-mismatch",
            Self::BadChunk { .. } => "bad-chunk",
            Self::NotLoaded { .. } => "not-loaded",
            Self::UnsupportedModel { .. } => "unsupported-model",
            Self::ContextOverflow { .. } => "context-overflow",
            Self::RewindTooFar { .. } => "rewind-too-far",
            Self::NoLogits => "no-logits",
            Self::BadToken { .. } => "bad-token",
            Self::BadContext { .. } | Self::BadArgument { .. } => "bad-argument",
        }
    }

    /// What the user can do about it, where there is something.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoDevice { .. } => Some("use a browser with WebGPU, or install a Vulkan driver"),
            Self::Limits { .. } => {
                Some("declare a shorter context, or take a plan of lower density")
            }
            Self::OutOfMemory { .. } => {
                Some("declare a shorter context, take a plan of lower density, or close other tabs")
            }
            Self::DeviceLost { .. } => Some("load the model again"),
            Self::Manifest { .. } | Self::Damaged { .. } => Some("fetch or build the bundle again"),
            Self::ContextOverflow { .. } => {
                Some("shorten the text, or make an engine with a longer context")
            }
            Self::NoLogits => Some("prefill at least one token first"),
            _ => None,
        }
    }
}
