//! What can go wrong while a model runs.

use moa_format::FormatError;
use moa_mask::MaskError;

/// A [`std::result::Result`] with this crate's [`LmError`].
pub type Result<T> = std::result::Result<T, LmError>;

/// A tensor that a [`WeightSource`](crate::WeightSource) could not give.
#[derive(Debug, thiserror::Error)]
#[error("cannot read tensor {tensor}")]
pub struct WeightError {
    /// Canonical name of the tensor.
    pub tensor: String,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl WeightError {
    /// Wraps the source's own error.
    pub fn new(
        tensor: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            tensor: tensor.into(),
            source: source.into(),
        }
    }
}

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LmError {
    /// A weight could not be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The model's configuration contradicts itself.
    #[error("the model's configuration is unusable")]
    Config(#[from] FormatError),
    /// Masks that were made for another model.
    #[error("the plan does not fit the model")]
    Mask(#[from] MaskError),
    /// A tensor with another number of values than the configuration asks for.
    #[error("tensor {tensor} has {got} values, expected {expected}")]
    TensorLength {
        /// Canonical name.
        tensor: String,
        /// Values in the source.
        got: usize,
        /// Rows times columns.
        expected: u64,
    },
    /// A token outside the vocabulary.
    #[error("token {id} at position {position} is outside the vocabulary of {vocab_size}")]
    BadToken {
        /// The token id.
        id: u32,
        /// Index of the token in the list given.
        position: usize,
        /// Tokens that the model knows.
        vocab_size: u32,
    },
    /// A call that needs at least one token.
    #[error("there are no tokens to run")]
    NoTokens,
    /// More tokens than positions can count.
    #[error("{got} tokens were given, expected at most {most}")]
    TooManyTokens {
        /// Tokens given.
        got: usize,
        /// The bound.
        most: u32,
    },
    /// Loss was asked for at a position that nothing predicts, or nowhere.
    #[error("{problem} (the text has {len} tokens; a target lies at positions 1 to {len} - 1)")]
    BadTargets {
        /// What is wrong.
        problem: String,
        /// Tokens of the text.
        len: usize,
    },
    /// An option without meaning.
    #[error("{what} is {got}, expected {expected}")]
    BadOption {
        /// The option.
        what: &'static str,
        /// Its value.
        got: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// More tokens than the context that a session was created with.
    #[error("{more} more tokens after {len} do not fit a context of {context}")]
    ContextFull {
        /// Tokens in the session.
        len: u32,
        /// Tokens that should have followed.
        more: usize,
        /// The declared context.
        context: u32,
    },
    /// More tokens taken back than the rings can restore.
    #[error("cannot take back {asked} tokens, at most {most} here")]
    RewindTooFar {
        /// Tokens to take back.
        asked: u32,
        /// Tokens that could be taken back now.
        most: u32,
    },
    /// A session whose device failed in the middle of a chunk.
    #[error("the session was left unfinished by an earlier failure")]
    BrokenSession,
    /// The observer asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The device failed: out of memory, lost, or without a kernel for this shape.
    #[error("{device} failed")]
    Device {
        /// The device.
        device: String,
        /// Its own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A profile or logits that are not numbers.
    #[error("{device} computed values that are not finite")]
    NotFinite {
        /// The device.
        device: String,
    },
}

impl LmError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::ContextFull { .. } => Some("declare a longer context, or shorten the text"),
            Self::Mask(_) => Some("use a plan that was made for this model"),
            Self::BadToken { .. } => Some("the ids were made with another tokenizer"),
            Self::BadTargets { .. } => {
                Some("give a response: tokens after the prompt that carry loss")
            }
            Self::NotFinite { .. } => Some(
                "use --device cpu, which computes in f32; if it fails there too, the model's weights are damaged",
            ),
            _ => None,
        }
    }
}
