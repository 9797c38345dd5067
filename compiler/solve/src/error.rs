//! What stops a solve. Infeasibility does not: it is an outcome.

use crate::Violation;

/// A [`std::result::Result`] with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A problem that cannot be stated, or a solver that gave no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The problem has no layers, no KV heads or no candidates.
    #[error("the problem has no {what}")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// The cost table is not `[layer * kv_heads + kv_head][candidate]`.
    #[error("{what} holds {got} numbers, expected {expected}")]
    WrongLength {
        /// Which table.
        what: String,
        /// Its length.
        got: usize,
        /// Heads times candidates.
        expected: usize,
    },
    /// A cost is NaN or infinite.
    #[error("cost of head {head} candidate {candidate} is {got}, expected a finite number")]
    BadCost {
        /// `layer * kv_heads + kv_head`.
        head: usize,
        /// Index of the candidate.
        candidate: usize,
        /// The cost.
        got: f64,
    },
    /// A number of a budget or of the options is out of range.
    #[error("{what} is {got}, expected {expected}")]
    OutOfRange {
        /// The field.
        what: String,
        /// Its value.
        got: f64,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A candidate defines no mask.
    #[error("candidate {candidate}")]
    BadCandidate {
        /// Index of the candidate.
        candidate: usize,
        /// Why.
        #[source]
        source: moa_mask::MaskError,
    },
    /// HiGHS was asked for and is not built in.
    #[error("this build has no HiGHS, expected feature `highs` or solver `lagrange`")]
    NoHighs,
    /// HiGHS refused the model or stopped with an unexpected status.
    #[error("HiGHS failed: {status}")]
    Highs {
        /// Its status.
        status: String,
    },
    /// The search ended without a plan and without a proof that there is none.
    #[error("no plan found after {secs:.1} s, time limit {limit_secs} s")]
    NoPlanFound {
        /// Time spent.
        secs: f64,
        /// The limit.
        limit_secs: f64,
    },
    /// A plan that breaks a budget or a limit.
    #[error(transparent)]
    Violated(#[from] Violation),
}
