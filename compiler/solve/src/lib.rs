//! Chooses one rule per KV head: the least summed influence under a `kv_density` budget at every constrained length.
//!
//! ```text
//! minimize    sum over heads h of cost[h, rule of h]
//! subject to  mean over heads of min(S(N), N) / N  <=  bound(N)      at every constrained N
//!             distinct rules in a layer            <=  K             only when asked
//! ```
//!
//! Without a limit per layer, Lagrange prices on the density rows give a lower bound, a good plan and leave, by the
//! reduced costs, a few per cent of the variables; HiGHS closes what gap is left (feature `highs`, on by default).
//! Without that feature the plan of the prices, polished, is the answer, and its gap says how good it is. With a
//! limit the monolithic model has a gap of tens of per cent after minutes, so the layers are priced one by one: rule
//! sets are enumerated per layer under the prices, the best become columns, and a small programme picks one column a
//! layer.
//!
//! Outcomes are values: an infeasible problem names its budget, a solve that ran out of time returns its best plan and
//! the gap. The crate reads no files, prints nothing and deliberately knows nothing about how influence was measured.

mod candidate;
mod choice;
mod dual;
mod error;
mod layer;
mod layered;
#[cfg(feature = "highs")]
mod mip;
mod outcome;
mod primal;
mod problem;
mod select;
mod stopwatch;

pub use candidate::candidates;
pub use error::{Error, Result};
pub use outcome::{Infeasible, Options, Outcome, Solution, Solver};
pub use problem::{Budget, Problem, Violation};

use choice::Choice;
use select::{ANY_NODES, Selected, select};
use stopwatch::Stopwatch;

/// Solves `problem`. Deterministic for the same problem and options unless the time limit was reached.
///
/// # Errors
///
/// A malformed problem, a solver that was not built in, and a time limit that passed before any plan was found.
/// An infeasible problem is no error but [`Outcome::Infeasible`].
pub fn solve(problem: &Problem, options: &Options) -> Result<Outcome> {
    problem.check()?;
    options.check()?;
    let watch = Stopwatch::start(options.time_limit_secs);
    if let Some(reason) = problem.least_density_over_budget() {
        return Ok(Outcome::Infeasible { reason });
    }
    let limit = problem
        .max_rules_per_layer
        .filter(|&limit| limit < problem.kv_heads && limit < problem.candidates.len());
    let (selected, solver) = match limit {
        None => {
            let choice = Choice::of_heads(problem);
            let selected = select(&choice, ANY_NODES, options, &watch)?;
            let solver = if selected.used_highs {
                "highs"
            } else {
                "lagrange"
            };
            (selected, solver)
        }
        Some(limit) => {
            let selected = layered::select(problem, limit, options, &watch)?;
            let solver = if selected.used_highs {
                "columns+highs"
            } else {
                "columns+lagrange"
            };
            (selected, solver)
        }
    };
    finish(problem, options, selected, solver, &watch)
}

fn finish(
    problem: &Problem,
    options: &Options,
    selected: Selected,
    solver: &'static str,
    watch: &Stopwatch,
) -> Result<Outcome> {
    let Some(keys) = selected.keys else {
        return if selected.proven_infeasible {
            Ok(Outcome::Infeasible {
                reason: Infeasible::Together {
                    contexts: problem
                        .budgets
                        .iter()
                        .map(|budget| budget.context)
                        .collect(),
                },
            })
        } else {
            Err(Error::NoPlanFound {
                secs: watch.secs(),
                limit_secs: options.time_limit_secs,
            })
        };
    };
    let rule_of_head: Vec<usize> = keys.into_iter().map(|key| key as usize).collect();
    problem.verify(&rule_of_head)?;
    let objective = problem.objective(&rule_of_head);
    let bound = selected.bound.min(objective);
    let gap = problem.gap(objective, bound);
    let solution = Solution {
        rule_of_head,
        objective,
        bound,
        gap,
        secs: watch.secs(),
        solver,
    };
    tracing::debug!(
        objective,
        bound,
        gap,
        secs = solution.secs,
        solver,
        "solved"
    );
    Ok(if gap <= options.gap {
        Outcome::Optimal(solution)
    } else {
        Outcome::Feasible { solution, gap }
    })
}
