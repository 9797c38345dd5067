//! One plan from one profile: costs, budgets at every constrained length, and the plan that comes out.

use std::collections::BTreeMap;

use moa_format::{Plan, Provenance};
use moa_mask::MaskGrid;
use serde::Serialize;

use super::costs::{CostSpec, costs};
use super::curves::Curves;
use super::programme::{Chosen, Programme, plan_name};
use crate::hint::Told;

/// Doublings of a weight before a bound on a kind is given up as out of reach.
const DOUBLINGS: i32 = 16;
const BISECTIONS: usize = 8;

/// What is asked of the solver.
#[derive(Debug, Clone)]
pub(crate) struct SolveSpec {
    pub(crate) density: f64,
    pub(crate) context: u32,
    pub(crate) cost: CostSpec,
    /// No span below this many tokens.
    pub(crate) min_span: Option<u32>,
    /// A kind (or `task`, `text`), and how many times the least possible cost of it a plan may have: a constraint in
    /// place of a sum.
    pub(crate) hold: Option<(String, f64)>,
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

impl SolveSpec {
    /// The programme over profiles at `profiled`.
    pub(crate) fn programme(
        &self,
        shape: (usize, usize),
        grid: MaskGrid,
        profiled: &[u32],
    ) -> Programme {
        Programme {
            max_rules_per_layer: self.max_rules_per_layer,
            time_limit_secs: self.time_limit_secs,
            seed: self.seed,
            ..Programme::new(shape, grid, profiled, self.context, self.min_span)
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        if !(self.density > 0.0 && self.density <= 1.0) {
            return Err(Told::new(
                format!(
                    "--density is {}, expected more than 0 and at most 1",
                    self.density
                ),
                "use for example --density 0.5",
            )
            .into());
        }
        if self.context == 0 {
            return Err(Told::new(
                "--context is 0, expected at least 1",
                "use for example --context 8192",
            )
            .into());
        }
        Ok(())
    }
}

/// Refuses budgets that no plan meets, without any curves.
///
/// Budgets bound means over heads, and every head has the same candidates: one head decides for all.
pub(crate) fn check_budgets(
    profiled: &[u32],
    grid: MaskGrid,
    spec: &SolveSpec,
) -> anyhow::Result<()> {
    spec.check()?;
    let mut programme = spec.programme((1, 1), grid, profiled);
    programme.max_rules_per_layer = None;
    // A single head cannot mix rules; only a budget below the smallest span is certain to fail for all.
    match programme.solve(&vec![0.0; programme.rules.len()], spec.density) {
        Err(error)
            if error.chain().any(|cause| {
                matches!(
                    cause.downcast_ref::<moa_solve::Infeasible>(),
                    Some(moa_solve::Infeasible::Budget { .. })
                )
            }) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Chooses one rule per KV head.
pub(crate) fn solve(curves: &Curves, spec: &SolveSpec) -> anyhow::Result<(Plan, SolveReport)> {
    spec.check()?;
    if !curves.has(spec.cost.estimator) {
        return Err(Told::new(
            format!("the profile has no curves of {}", spec.cost.estimator),
            "profile again with `moa-compile profile`, which keeps every estimator",
        )
        .into());
    }
    let profiled: Vec<u32> = curves.lengths.keys().copied().collect();
    let programme = spec.programme((curves.layers, curves.kv_heads), curves.grid, &profiled);
    let chosen = match &spec.hold {
        None => programme.solve(&table(curves, &spec.cost, &programme), spec.density)?,
        Some((kind, factor)) => hold(curves, spec, &programme, kind, *factor)?,
    };
    let plan = programme.plan(
        chosen.rules(),
        &plan_name(spec.density),
        provenance(curves, spec, &programme, &chosen),
    );
    let report = report(&programme, &chosen);
    Ok((plan, report))
}

/// Costs of a programme's rules.
pub(crate) fn table(curves: &Curves, spec: &CostSpec, programme: &Programme) -> Vec<f64> {
    costs(curves, spec, &programme.rules, &programme.lengths)
}

/// The cheapest plan whose cost on one kind is at most `factor` times the least possible one at the same budget: the
/// weight of that kind is raised until it is, and then lowered as far as that holds.
fn hold(
    curves: &Curves,
    spec: &SolveSpec,
    programme: &Programme,
    kind: &str,
    factor: f64,
) -> anyhow::Result<Chosen> {
    let only = CostSpec {
        kinds: BTreeMap::from([
            ("task".to_owned(), f64::from(u8::from(kind == "task"))),
            ("text".to_owned(), f64::from(u8::from(kind == "text"))),
            (kind.to_owned(), 1.0),
        ]),
        ..spec.cost.clone()
    };
    let held = table(curves, &only, programme);
    let rules = programme.rules.len();
    let cost = |chosen: &Chosen| -> f64 {
        held.chunks_exact(rules)
            .zip(chosen.rules())
            .map(|(costs, &rule)| costs[rule])
            .sum()
    };
    let least = programme.solve(&held, spec.density)?;
    let bound = cost(&least) + cost(&least).abs() * (factor - 1.0);
    let weighed = |weight: f64| -> anyhow::Result<Chosen> {
        let mut of = spec.cost.clone();
        of.kinds.insert(kind.to_owned(), weight);
        programme.solve(&table(curves, &of, programme), spec.density)
    };
    let (mut low, mut high) = (0.0, 1.0);
    let mut best = None;
    for _ in 0..DOUBLINGS {
        let chosen = weighed(high)?;
        if cost(&chosen) <= bound {
            best = Some(chosen);
            break;
        }
        low = high;
        high *= 2.0;
    }
    let Some(mut best) = best else {
        return Ok(least);
    };
    for _ in 0..BISECTIONS {
        let middle = (low + high) / 2.0;
        let chosen = weighed(middle)?;
        if cost(&chosen) <= bound {
            (best, high) = (chosen, middle);
        } else {
            low = middle;
        }
    }
    Ok(best)
}

/// What a plan says of where it came from.
pub(crate) fn provenance(
    curves: &Curves,
    spec: &SolveSpec,
    programme: &Programme,
    chosen: &Chosen,
) -> Provenance {
    let text = |key: &str| curves.metadata.get(key).cloned();
    let solution = &chosen.solution;
    Provenance {
        tool: Some(crate::pipeline::TOOL.into()),
        seed: text("seed").and_then(|seed| seed.parse().ok()),
        base_model: text("base_model"),
        license: text("license"),
        source_sha256: text("source_sha256"),
        calibration_sha256: text("calibration_sha256"),
        estimator: Some(spec.cost.estimator.name().to_owned()),
        lengths: curves.lengths.keys().copied().collect(),
        budgets: programme
            .lengths
            .iter()
            .map(|&length| (length, spec.density))
            .collect(),
        notes: BTreeMap::from([
            ("solver".to_owned(), solution.solver.to_owned()),
            ("status".to_owned(), chosen.status.to_owned()),
            ("gap".to_owned(), format!("{:.2e}", solution.gap)),
            ("objective".to_owned(), format!("{:.9}", solution.objective)),
        ]),
    }
}

/// What the solver did.
pub(crate) fn report(programme: &Programme, chosen: &Chosen) -> SolveReport {
    let solution = &chosen.solution;
    let mut distinct = solution.rule_of_head.clone();
    distinct.sort_unstable();
    distinct.dedup();
    SolveReport {
        status: chosen.status,
        solver: solution.solver,
        objective: solution.objective,
        bound: solution.bound,
        gap: solution.gap,
        candidates: programme.rules.len(),
        distinct_rules: distinct.len(),
        kv_density: programme.densities(chosen.rules()),
        secs: solution.secs,
    }
}

#[cfg(test)]
mod tests {
    use moa_lm::Estimator;

    use super::*;

    #[test]
    fn a_held_kind_costs_no_more_than_it_may() {
        // Eight heads: tasks need the first four, text the last four, at the same strength; half the cache for all.
        let grid = MaskGrid::new(16, 16).unwrap();
        let kind = |first: f64, last: f64| -> Vec<f64> {
            (0..8)
                .flat_map(|head| {
                    let need = if head < 4 { first } else { last };
                    (0..64)
                        .map(move |bin| need * f64::from(63 - bin) * (1.0 + 0.01 * f64::from(head)))
                })
                .collect()
        };
        let kinds = [("needle", kind(4.0, 0.1)), ("prose", kind(0.1, 1.0))];
        let curves = Curves::of_kinds((4, 2), grid, 1024, kinds);
        let spec = |hold| SolveSpec {
            density: 0.5,
            context: 1024,
            cost: CostSpec::new(Estimator::JointSigned),
            min_span: None,
            hold,
            max_rules_per_layer: None,
            time_limit_secs: 10.0,
            seed: 0,
        };
        let text_share = |plan: &Plan| -> f64 {
            let spans: Vec<f64> = plan
                .masks(1024)
                .unwrap()
                .iter()
                .map(|mask| f64::from(mask.span().min(1024)))
                .collect();
            spans[4..].iter().sum::<f64>() / spans.iter().sum::<f64>()
        };
        let (free, _) = solve(&curves, &spec(None)).unwrap();
        let mut last = text_share(&free);
        for factor in [3.0, 1.5, 1.05] {
            let (held, report) = solve(&curves, &spec(Some(("text".into(), factor)))).unwrap();
            let share = text_share(&held);
            assert!(share >= last - 1e-9, "{share} after {last}");
            assert!(report.kv_density[&1024] <= 0.5 + 1e-9);
            last = share;
        }
        assert!(last > 0.85, "{last}");
    }
}
