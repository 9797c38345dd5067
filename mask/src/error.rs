//! What can be wrong with a mask's numbers.

/// A [`std::result::Result`] with this crate's [`MaskError`].
pub type Result<T> = std::result::Result<T, MaskError>;

/// A rule, a grid or a shape that defines no mask.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// The block size is zero.
    #[error("block size is 0, expected at least 1 token")]
    ZeroBlock,
    /// The sink is neither 0 nor a multiple of the block size.
    #[error("sink is {sink} tokens, expected 0 or a multiple of the block size {block}")]
    UnalignedSink {
        /// The sink in tokens.
        sink: u32,
        /// The block size in tokens.
        block: u32,
    },
    /// A number of a rule is NaN, infinite, or out of range.
    #[error("rule alpha {alpha} beta {beta}: expected a finite alpha and a beta in [0, 1]")]
    BadRule {
        /// Tokens at length zero.
        alpha: f64,
        /// Tokens per token of context.
        beta: f64,
    },
    /// An explicit span that does not reach past the sink.
    #[error("span is {span} tokens, expected at least sink + 1 = {}", sink + 1)]
    SpanTooShort {
        /// The span as written.
        span: u32,
        /// The sink of the plan.
        sink: u32,
    },
    /// A model shape in which one of the counts is zero or query heads do not divide into groups.
    #[error("{what} is {got}, expected {expected}")]
    BadShape {
        /// The field.
        what: &'static str,
        /// Its value.
        got: u64,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A context length of zero, or one whose cache does not fit in 64 bits.
    #[error("context length is {got}, expected 1 to {}", u32::MAX)]
    BadContext {
        /// The context length.
        got: u64,
    },
    /// A plan or a list of masks whose shape is not the model's.
    #[error("plan has {got} {what}, the model has {expected}")]
    ShapeMismatch {
        /// `layers`, or `kv heads in layer 3`.
        what: String,
        /// What the plan has.
        got: usize,
        /// What the model has.
        expected: usize,
    },
}
