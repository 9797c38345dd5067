//! Profile and solve: from a model and calibration samples to curves, from curves to a plan.

mod costs;
mod curves;
mod run;
mod solve;

pub(crate) use curves::Curves;
pub(crate) use run::{ProfileSpec, Profiler};
pub(crate) use solve::{SolveReport, SolveSpec, check_budgets, solve};
