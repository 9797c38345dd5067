//! Profile and solve: from a model and calibration samples to curves, from curves to a plan.

mod costs;
mod curves;
mod programme;
mod run;
mod solve;

pub(crate) use costs::{CostSpec, TASK_NATS, TEXT_WEIGHT, costs, is_text};
pub(crate) use curves::Curves;
pub(crate) use programme::{Chosen, Programme, plan_name};
pub(crate) use run::{ProfileSpec, Profiler};
pub(crate) use solve::{SolveReport, SolveSpec, check_budgets, provenance, report, solve, table};
