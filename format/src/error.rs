//! What can be wrong with a plan, a manifest, a shard or a tensor. Every message says what was expected and
//! what was there; where the reader can do something about it, it says what.

use moa_mask::MaskError;

/// A [`std::result::Result`] with this crate's [`FormatError`].
pub type Result<T> = std::result::Result<T, FormatError>;

/// Bytes or numbers that are not what this crate reads or writes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A document that is not JSON, or JSON with the wrong fields.
    #[error("{what} is not readable: {reason}")]
    Json {
        /// `plan`, `manifest`.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A file written by a newer version of this software.
    #[error(
        "{what} has version {got}, and this program reads up to version {supported}; update it (moa-compile, or the \
         moa-runtime package), or build the bundle again with this version"
    )]
    NewerVersion {
        /// `plan`, `plan file`, `manifest`.
        what: &'static str,
        /// Version in the file.
        got: u64,
        /// Newest version that this build reads.
        supported: u32,
    },
    /// A value that is out of its range, or one that contradicts another.
    #[error("{what} is {got}, expected {expected}")]
    Invalid {
        /// The field, with its place where there are many.
        what: String,
        /// Its value.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A file that ends early, or goes on after its end.
    #[error("{what} has {got} bytes, expected {expected}")]
    WrongSize {
        /// The file or the part of it.
        what: String,
        /// Bytes that are there.
        got: u64,
        /// Bytes that should be there.
        expected: u64,
    },
    /// Bytes whose checksum is not the recorded one.
    #[error(
        "{what} is damaged: its checksum is {got}, expected {expected}; fetch or build it again"
    )]
    Damaged {
        /// The file or the part of it.
        what: String,
        /// Checksum of the bytes at hand.
        got: String,
        /// Checksum on record.
        expected: String,
    },
    /// A file of another kind.
    #[error("{what} does not begin with {expected}: this is another kind of file")]
    NotThis {
        /// The file.
        what: &'static str,
        /// What it should begin with.
        expected: &'static str,
    },
    /// A plan binary whose inside does not decode although its checksum holds.
    #[error("plan file does not decode: {reason}")]
    Undecodable {
        /// What the decoder said.
        reason: String,
    },
    /// JSON that is none of the plans that can be imported.
    #[error(
        "this JSON is no plan: expected one written by moa-compile (\"version\", \"rules\"), one of the MoA reference \
         (\"alphas\", \"betas\"), or explicit spans (\"sink\", \"spans\")"
    )]
    UnknownPlan,
    /// A plan made for another model.
    #[error("plan has {got} {what}, the model has {expected}")]
    PlanShape {
        /// `layers`, or `heads in layer 3`.
        what: String,
        /// What the plan has.
        got: usize,
        /// What the model has.
        expected: String,
    },
    /// A rule, a grid or a context length that defines no mask.
    #[error("{place}: {source}")]
    Mask {
        /// `plan`, or `layer 3 kv_head 1`.
        place: String,
        /// What is wrong with it.
        source: MaskError,
    },
    /// A weight that no stored type can hold.
    #[error("weight {index} is {value}, and {dtype} cannot hold it: {reason}")]
    Unrepresentable {
        /// Index among the values given.
        index: usize,
        /// The value or the scale in question.
        value: f64,
        /// The stored type.
        dtype: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A tensor that the model has and the file has not, or the other way round.
    #[error("tensor {index} is {got}, expected {expected}")]
    WrongTensor {
        /// Place in the list of tensors.
        index: usize,
        /// Name that is there.
        got: String,
        /// Name that should be there.
        expected: String,
    },
    /// A plan name that the bundle does not have.
    #[error("no plan is called {got:?}; this bundle has {known}")]
    UnknownPlanName {
        /// The name asked for.
        got: String,
        /// The names that exist.
        known: String,
    },
}

impl FormatError {
    /// A value out of its range.
    pub(crate) fn invalid(
        what: impl Into<String>,
        got: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            what: what.into(),
            got: got.to_string(),
            expected: expected.into(),
        }
    }

    /// A size that is not the expected one.
    pub(crate) fn size(what: impl Into<String>, got: u64, expected: u64) -> Self {
        Self::WrongSize {
            what: what.into(),
            got,
            expected,
        }
    }
}

/// Passes where `holds`, and names the field where not.
pub(crate) fn ensure(
    holds: bool,
    what: impl Into<String>,
    got: impl ToString,
    expected: impl Into<String>,
) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(FormatError::invalid(what, got, expected))
    }
}
