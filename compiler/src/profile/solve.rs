//! The programme over a profile: candidates, budgets at every constrained length, and the plan that comes out.

use std::collections::BTreeMap;

use moa_format::{Plan, Provenance};
use moa_lm::Estimator;
use moa_mask::{HeadRule, MaskGrid};
use moa_solve::{Budget, Infeasible, Options, Outcome, Problem, candidates};
use serde::Serialize;

use super::costs::costs;
use super::curves::Curves;
use crate::hint::Told;

/// What is asked of the solver.
#[derive(Debug, Clone)]
pub(crate) struct SolveSpec {
    pub(crate) density: f64,
    pub(crate) context: u32,
    pub(crate) estimator: Estimator,
    pub(crate) max_rules_per_layer: Option<usize>,
    pub(crate) time_limit_secs: f64,
    pub(crate) seed: u64,
}

/// What the solver says of its own work.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SolveReport {
    pub(crate) status: &'static str,
    pub(crate) solver: &'static str,
    pub(crate) objective: f64,
    pub(crate) bound: f64,
    pub(crate) gap: f64,
    pub(crate) candidates: usize,
    pub(crate) distinct_rules: usize,
    /// kv_density by constrained length.
    pub(crate) kv_density: BTreeMap<u32, f64>,
    /// Wall time; not part of any file, since files must not depend on the clock.
    pub(crate) secs: f64,
}

/// Lengths whose density is bounded: 1k, 2k, 4k and so on up to the declared context, and the context itself.
fn constrained(context: u32) -> Vec<u32> {
    let mut lengths: Vec<u32> = (0..32)
        .map(|power| 1024_u32.saturating_mul(1 << power.min(21)))
        .take_while(|&length| length < context)
        .collect();
    lengths.push(context);
    lengths.dedup();
    lengths
}

/// Refuses budgets that no plan meets, without any curves.
///
/// Budgets bound means over heads, and every head has the same candidates: one head decides for all.
pub(crate) fn check_budgets(
    profiled: &[u32],
    grid: MaskGrid,
    spec: &SolveSpec,
) -> anyhow::Result<()> {
    check(spec)?;
    let lengths = constrained(spec.context);
    let rules = candidates(profiled, &lengths, grid);
    let problem = Problem {
        layers: 1,
        kv_heads: 1,
        costs: vec![0.0; rules.len()],
        budgets: budgets(&lengths, spec.density),
        candidates: rules,
        grid,
        max_rules_per_layer: None,
    };
    // A single head cannot mix rules; only a budget below the smallest span is certain to fail for all.
    match moa_solve::solve(&problem, &Options::default())? {
        Outcome::Infeasible {
            reason: reason @ Infeasible::Budget { .. },
        } => Err(infeasible(reason, spec)),
        _ => Ok(()),
    }
}

fn check(spec: &SolveSpec) -> anyhow::Result<()> {
    if !(spec.density > 0.0 && spec.density <= 1.0) {
        return Err(Told::new(
            format!(
                "--density is {}, expected more than 0 and at most 1",
                spec.density
            ),
            "use for example --density 0.5",
        )
        .into());
    }
    if spec.context == 0 {
        return Err(Told::new(
            "--context is 0, expected at least 1",
            "use for example --context 8192",
        )
        .into());
    }
    Ok(())
}

fn budgets(lengths: &[u32], density: f64) -> Vec<Budget> {
    lengths
        .iter()
        .map(|&context| Budget {
            context,
            kv_density: density,
        })
        .collect()
}

fn infeasible(reason: Infeasible, spec: &SolveSpec) -> anyhow::Error {
    anyhow::Error::new(reason).context(Told::new(
        format!("no plan has a kv_density of {} or less", spec.density),
        "raise --density, or lower --sink and --block",
    ))
}

/// Chooses one rule per KV head.
pub(crate) fn solve(curves: &Curves, spec: &SolveSpec) -> anyhow::Result<(Plan, SolveReport)> {
    check(spec)?;
    let profiled: Vec<u32> = curves.lengths.keys().copied().collect();
    let lengths = constrained(spec.context);
    let rules: Vec<HeadRule> = candidates(&profiled, &lengths, curves.grid);
    let problem = Problem {
        layers: curves.layers,
        kv_heads: curves.kv_heads,
        costs: costs(curves, spec.estimator, &rules, &lengths),
        budgets: budgets(&lengths, spec.density),
        candidates: rules,
        grid: curves.grid,
        max_rules_per_layer: spec.max_rules_per_layer,
    };
    let options = Options {
        time_limit_secs: spec.time_limit_secs,
        seed: spec.seed,
        ..Options::default()
    };
    let (status, solution) = match moa_solve::solve(&problem, &options)? {
        Outcome::Optimal(solution) => ("optimal", solution),
        Outcome::Feasible { solution, .. } => ("feasible", solution),
        Outcome::Infeasible { reason } => return Err(infeasible(reason, spec)),
    };
    let rules: Vec<Vec<HeadRule>> = solution
        .rule_of_head
        .chunks(curves.kv_heads)
        .map(|layer| layer.iter().map(|&rule| problem.candidates[rule]).collect())
        .collect();
    let mut distinct = solution.rule_of_head.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let budgets: BTreeMap<u32, f64> = lengths
        .iter()
        .map(|&length| (length, spec.density))
        .collect();
    let notes = BTreeMap::from([
        ("solver".to_owned(), solution.solver.to_owned()),
        ("status".to_owned(), status.to_owned()),
        ("gap".to_owned(), format!("{:.2e}", solution.gap)),
        ("objective".to_owned(), format!("{:.9}", solution.objective)),
    ]);
    let text = |key: &str| curves.metadata.get(key).cloned();
    let plan = Plan {
        name: plan_name(spec.density),
        sink: curves.grid.sink(),
        block: curves.grid.block(),
        rules,
        provenance: Provenance {
            tool: Some(crate::pipeline::TOOL.into()),
            seed: text("seed").and_then(|seed| seed.parse().ok()),
            base_model: text("base_model"),
            license: text("license"),
            source_sha256: text("source_sha256"),
            calibration_sha256: text("calibration_sha256"),
            estimator: Some(spec.estimator.name().to_owned()),
            lengths: profiled,
            budgets,
            notes,
        },
    };
    let kv_density = lengths
        .iter()
        .map(|&length| {
            Ok((
                length,
                moa_mask::density::kv_density(plan.masks(length)?.iter(), length),
            ))
        })
        .collect::<Result<BTreeMap<u32, f64>, moa_format::FormatError>>()?;
    let report = SolveReport {
        status,
        solver: solution.solver,
        objective: solution.objective,
        bound: solution.bound,
        gap: solution.gap,
        candidates: problem.candidates.len(),
        distinct_rules: distinct.len(),
        kv_density,
        secs: solution.secs,
    };
    Ok((plan, report))
}

/// `moa-50` for half the cache.
fn plan_name(density: f64) -> String {
    let percent = format!("{:.2}", density * 100.0);
    format!(
        "moa-{}",
        percent.trim_end_matches('0').trim_end_matches('.')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_double_up_to_the_context() {
        assert_eq!(constrained(8192), [1024, 2048, 4096, 8192]);
        assert_eq!(constrained(5000), [1024, 2048, 4096, 5000]);
        assert_eq!(constrained(512), [512]);
        assert_eq!(constrained(u32::MAX).len(), 23);
    }

    #[test]
    fn plans_are_named_by_density() {
        assert_eq!(plan_name(0.5), "moa-50");
        assert_eq!(plan_name(0.125), "moa-12.5");
    }
}
