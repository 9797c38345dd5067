//! What a solve is asked for, and what it answers.

use crate::{Error, Result};

/// Which solver runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Solver {
    /// HiGHS where it is built in, else the Lagrange fallback.
    #[default]
    Auto,
    /// HiGHS, or an error where it is not built in.
    Highs,
    /// The fallback alone: prices, repair and polish.
    Lagrange,
}

impl Solver {
    pub(crate) fn highs(self) -> Result<bool> {
        match self {
            Self::Auto => Ok(cfg!(feature = "highs")),
            Self::Highs if !cfg!(feature = "highs") => Err(Error::NoHighs),
            Self::Highs => Ok(true),
            Self::Lagrange => Ok(false),
        }
    }
}

/// How long and how exactly to solve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Wall-clock limit in seconds; the best plan so far is returned when it passes.
    pub time_limit_secs: f64,
    /// Seed of HiGHS's own choices; the fallback makes none.
    pub seed: u64,
    /// Relative gap at which a plan counts as optimal.
    pub gap: f64,
    /// Which solver runs.
    pub solver: Solver,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            time_limit_secs: 60.0,
            seed: 0,
            gap: 1e-5,
            solver: Solver::Auto,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        for (what, got, good) in [
            (
                "time limit in seconds",
                self.time_limit_secs,
                self.time_limit_secs > 0.0,
            ),
            ("gap", self.gap, self.gap >= 0.0),
        ] {
            if !good || !got.is_finite() {
                return Err(Error::OutOfRange {
                    what: what.into(),
                    got,
                    expected: "a finite number, the limit above 0 and the gap not below 0",
                });
            }
        }
        self.solver.highs().map(|_| ())
    }
}

/// A plan, what it costs and how far it can be from the best one.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// Index of the candidate of every head, `[layer * kv_heads + kv_head]`.
    pub rule_of_head: Vec<usize>,
    /// Summed cost of the plan.
    pub objective: f64,
    /// No plan costs less than this.
    pub bound: f64,
    /// `(objective - bound) / |objective|`; the divisor is never below a millionth of the range of all plans' costs.
    pub gap: f64,
    /// Wall-clock time of the solve in seconds.
    pub secs: f64,
    /// Who made the last step: `highs`, `lagrange`, `columns+highs` or `columns+lagrange`.
    pub solver: &'static str,
}

/// Why no plan meets the budgets.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Infeasible {
    /// At one length even the smallest spans on offer keep too much.
    #[error(
        "the budget at N={context} allows kv_density {bound}, but the smallest spans on offer ({least_span} tokens) already keep {least_density:.4}"
    )]
    Budget {
        /// The length whose budget binds.
        context: u32,
        /// Its bound.
        bound: f64,
        /// Mean density of the smallest spans.
        least_density: f64,
        /// The smallest span on offer at that length, in tokens.
        least_span: u32,
    },
    /// Every budget can be met, but no plan meets all of them.
    #[error("no plan meets the budgets at N={contexts:?} together, though each can be met alone")]
    Together {
        /// The constrained lengths.
        contexts: Vec<u32>,
    },
}

/// The answer of [`crate::solve`].
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The gap is within [`Options::gap`].
    Optimal(Solution),
    /// The best plan found in the time, or by the fallback, with a gap that is larger than asked for.
    Feasible {
        /// The plan.
        solution: Solution,
        /// Its gap.
        gap: f64,
    },
    /// No plan meets the budgets.
    Infeasible {
        /// Which budget binds.
        reason: Infeasible,
    },
}

impl Outcome {
    /// The plan, unless there is none.
    pub fn solution(&self) -> Option<&Solution> {
        match self {
            Self::Optimal(solution) | Self::Feasible { solution, .. } => Some(solution),
            Self::Infeasible { .. } => None,
        }
    }
}
