//! The programme of one model: the rules on offer, the lengths whose density is bounded, and ways to choose among them.
//!
//! Costs come from outside, as a table `[head][rule]`.

use std::collections::BTreeMap;

use moa_format::{Plan, Provenance};
use moa_mask::density::kv_density;
use moa_mask::{HeadRule, MaskGrid, ModelMasks};
use moa_solve::{Budget, Infeasible, Options, Outcome, Problem, Solution, candidates};

use crate::hint::Told;
use crate::plans::masks_of;

/// What may be chosen, and within which budgets.
#[derive(Debug, Clone)]
pub(crate) struct Programme {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) grid: MaskGrid,
    /// The rules on offer.
    pub(crate) rules: Vec<HeadRule>,
    /// Lengths whose density is bounded.
    pub(crate) lengths: Vec<u32>,
    pub(crate) max_rules_per_layer: Option<usize>,
    pub(crate) time_limit_secs: f64,
    pub(crate) seed: u64,
}

/// A choice of rules, by their index.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) status: &'static str,
    pub(crate) solution: Solution,
}

impl Chosen {
    pub(crate) fn rules(&self) -> &[usize] {
        &self.solution.rule_of_head
    }
}

/// Lengths whose density is bounded: 1k, 2k, 4k and so on up to the declared context, and the context itself.
pub(crate) fn constrained(context: u32) -> Vec<u32> {
    let mut lengths: Vec<u32> = (0..32)
        .map(|power| 1024_u32.saturating_mul(1 << power.min(21)))
        .take_while(|&length| length < context)
        .collect();
    lengths.push(context);
    lengths.dedup();
    lengths
}

impl Programme {
    /// The rules for profiles at `profiled` and a declared context; with `min_span`, no narrower ones.
    pub(crate) fn new(
        (layers, kv_heads): (usize, usize),
        grid: MaskGrid,
        profiled: &[u32],
        context: u32,
        min_span: Option<u32>,
    ) -> Self {
        let lengths = constrained(context);
        let mut rules = candidates(profiled, &lengths, grid);
        if let Some(least) = min_span {
            rules.retain(|rule| {
                lengths
                    .iter()
                    .all(|&length| rule.span(length, grid) >= least.min(length))
            });
        }
        Self {
            layers,
            kv_heads,
            grid,
            rules,
            lengths,
            max_rules_per_layer: None,
            time_limit_secs: 60.0,
            seed: 0,
        }
    }

    pub(crate) fn heads(&self) -> usize {
        self.layers * self.kv_heads
    }

    fn problem(&self, costs: Vec<f64>, density: f64) -> Problem {
        Problem {
            layers: self.layers,
            kv_heads: self.kv_heads,
            candidates: self.rules.clone(),
            costs,
            budgets: self
                .lengths
                .iter()
                .map(|&context| Budget {
                    context,
                    kv_density: density,
                })
                .collect(),
            grid: self.grid,
            max_rules_per_layer: self.max_rules_per_layer,
        }
    }

    /// The cheapest choice with a kv_density of at most `density` at every constrained length.
    pub(crate) fn solve(&self, costs: &[f64], density: f64) -> anyhow::Result<Chosen> {
        let options = Options {
            time_limit_secs: self.time_limit_secs,
            seed: self.seed,
            ..Options::default()
        };
        match moa_solve::solve(&self.problem(costs.to_vec(), density), &options)? {
            Outcome::Optimal(solution) => Ok(Chosen {
                status: "optimal",
                solution,
            }),
            Outcome::Feasible { solution, .. } => Ok(Chosen {
                status: "feasible",
                solution,
            }),
            Outcome::Infeasible { reason } => Err(infeasible(reason, density)),
        }
    }

    /// Share of the dense cache that lies between two choices: the mean over constrained lengths of the sum of absolute
    /// differences of spans over that of dense spans.
    pub(crate) fn moved(&self, from: &[usize], to: &[usize]) -> f64 {
        let kept = |rule: usize, length: u32| {
            f64::from(self.rules[rule].span(length, self.grid).min(length)) / f64::from(length)
        };
        let moved = |length: u32| -> f64 {
            let heads = from.iter().zip(to);
            heads
                .map(|(&from, &to)| (kept(from, length) - kept(to, length)).abs())
                .sum()
        };
        let sum: f64 = self.lengths.iter().map(|&length| moved(length)).sum();
        sum / (self.lengths.len() * self.heads()) as f64
    }

    /// The choice under which every head sees everything.
    pub(crate) fn dense(&self) -> Vec<usize> {
        let dense = self
            .rules
            .iter()
            .position(|rule| *rule == HeadRule::DENSE)
            .unwrap_or(self.rules.len() - 1);
        vec![dense; self.heads()]
    }

    /// A choice as a plan.
    pub(crate) fn plan(&self, choice: &[usize], name: &str, provenance: Provenance) -> Plan {
        Plan {
            name: name.to_owned(),
            sink: self.grid.sink(),
            block: self.grid.block(),
            rules: choice
                .chunks(self.kv_heads)
                .map(|layer| layer.iter().map(|&rule| self.rules[rule]).collect())
                .collect(),
            provenance,
        }
    }

    /// The masks of a choice at a length.
    pub(crate) fn masks(&self, choice: &[usize], length: u32) -> anyhow::Result<ModelMasks> {
        let rules: Vec<HeadRule> = choice.iter().map(|&rule| self.rules[rule]).collect();
        masks_of(&rules, self.kv_heads, length, self.grid)
    }

    /// kv_density of a choice by constrained length.
    pub(crate) fn densities(&self, choice: &[usize]) -> BTreeMap<u32, f64> {
        self.lengths
            .iter()
            .map(|&length| {
                let masks = choice
                    .iter()
                    .map(|&rule| self.rules[rule].mask(length, self.grid));
                (length, kv_density(masks, length))
            })
            .collect()
    }
}

pub(crate) fn infeasible(reason: Infeasible, density: f64) -> anyhow::Error {
    anyhow::Error::new(reason).context(Told::new(
        format!("no plan has a kv_density of {density} or less"),
        "raise --density, or lower --sink and --block",
    ))
}

/// `moa-50` for half the cache.
pub(crate) fn plan_name(density: f64) -> String {
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

    #[test]
    fn narrow_rules_go_where_a_least_span_is_asked_for() {
        let grid = MaskGrid::default();
        let all = Programme::new((1, 1), grid, &[2048], 2048, None);
        let some = Programme::new((1, 1), grid, &[2048], 2048, Some(256));
        assert!(some.rules.len() < all.rules.len());
        assert!(some.rules.iter().all(|rule| rule.span(1024, grid) >= 256));
        assert!(some.rules.contains(&HeadRule::DENSE));
    }
}
