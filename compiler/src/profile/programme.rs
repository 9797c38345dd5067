//! The programme of one model: the rules on offer, the lengths whose density is bounded, and ways to choose among them.
//!
//! Costs come from outside, as a table `[head][rule]`. [`Programme::near`] keeps a step close to a plan: it charges every
//! head for what it moves and finds, by bisection, the charge under which the whole step moves no more than allowed.
//! That is the Lagrangian of a trust region, so the solver needs no further constraint.

use std::collections::BTreeMap;

use moa_format::{Plan, Provenance};
use moa_mask::density::kv_density;
use moa_mask::{HeadRule, MaskGrid, ModelMasks};
use moa_solve::{Budget, Infeasible, Options, Outcome, Problem, Solution, candidates};

use crate::hint::Told;
use crate::plans::masks_of;

/// Solves of the bisection for the charge.
const BISECTIONS: usize = 12;

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
        let distance = self.distances();
        let rules = self.rules.len();
        let sum: f64 = from
            .iter()
            .zip(to)
            .map(|(&from, &to)| distance[from * rules + to])
            .sum();
        sum / self.heads() as f64
    }

    /// `[rule][rule]`: mean over constrained lengths of the difference of spans as a share of the length.
    fn distances(&self) -> Vec<f64> {
        let shares: Vec<Vec<f64>> = self
            .rules
            .iter()
            .map(|rule| {
                self.lengths
                    .iter()
                    .map(|&length| {
                        f64::from(rule.span(length, self.grid).min(length)) / f64::from(length)
                    })
                    .collect()
            })
            .collect();
        let mean = |a: &Vec<f64>, b: &Vec<f64>| {
            let sum: f64 = a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum();
            sum / self.lengths.len() as f64
        };
        shares
            .iter()
            .flat_map(|from| shares.iter().map(move |to| mean(from, to)))
            .collect()
    }

    /// The cheapest choice that moves at most `radius` of the dense cache away from `from`, or, where the budget cannot
    /// be met within it, moves as little as the search finds.
    pub(crate) fn near(
        &self,
        costs: &[f64],
        density: f64,
        from: &[usize],
        radius: f64,
    ) -> anyhow::Result<Chosen> {
        let distance = self.distances();
        let rules = self.rules.len();
        let charged = |charge: f64| -> anyhow::Result<(Chosen, f64)> {
            let table: Vec<f64> = costs
                .chunks_exact(rules)
                .zip(from)
                .flat_map(|(costs, &own)| {
                    let distance = &distance[own * rules..][..rules];
                    costs
                        .iter()
                        .zip(distance)
                        .map(move |(cost, distance)| cost + charge * distance)
                })
                .collect();
            let mut chosen = self.solve(&table, density)?;
            // Without the charge again.
            chosen.solution.objective = costs
                .chunks_exact(rules)
                .zip(&chosen.solution.rule_of_head)
                .map(|(costs, &rule)| costs[rule])
                .sum();
            let moved = self.moved(from, &chosen.solution.rule_of_head);
            Ok((chosen, moved))
        };
        let (free, moved) = charged(0.0)?;
        if moved <= radius {
            return Ok(free);
        }
        // The largest charge that can matter: the whole range of costs for the smallest move.
        let range = costs
            .chunks_exact(rules)
            .flat_map(|costs| {
                let low = costs.iter().copied().fold(f64::INFINITY, f64::min);
                costs.iter().map(move |cost| cost - low)
            })
            .fold(0.0, f64::max);
        let smallest = distance
            .iter()
            .copied()
            .filter(|distance| *distance > 0.0)
            .fold(1.0, f64::min);
        let (mut low, mut high) = (0.0, range.max(f64::MIN_POSITIVE) / smallest * 2.0);
        let (mut best, mut best_moved) = charged(high)?;
        for _ in 0..BISECTIONS {
            if best_moved > radius {
                // Not even the largest charge keeps within the radius: the budget asks for more.
                break;
            }
            // Charges span many orders of magnitude.
            let middle = if low == 0.0 {
                high / 16.0
            } else {
                (low * high).sqrt()
            };
            let (chosen, moved) = charged(middle)?;
            if moved <= radius {
                high = middle;
                if chosen.solution.objective <= best.solution.objective {
                    (best, best_moved) = (chosen, moved);
                }
            } else {
                low = middle;
            }
        }
        Ok(best)
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
    fn a_step_moves_no_further_than_its_radius() {
        let grid = MaskGrid::new(16, 16).unwrap();
        let programme = Programme::new((4, 2), grid, &[1024], 1024, None);
        let rules = programme.rules.len();
        // Even heads gain from width, odd heads from being narrow: the free choice is far from uniform.
        let costs: Vec<f64> = (0..8)
            .flat_map(|head| {
                (0..rules).map(move |rule| {
                    let share = rule as f64 / rules as f64;
                    if head % 2 == 0 {
                        1.0 - share
                    } else {
                        share * 0.1
                    }
                })
            })
            .collect();
        let half = programme
            .rules
            .iter()
            .position(|rule| rule.span(1024, grid) == 512)
            .unwrap();
        let from = vec![half; 8];
        let free = programme.solve(&costs, 0.5).unwrap();
        let far = programme.moved(&from, free.rules());
        assert!(far > 0.3, "{far}");
        let mut last = f64::INFINITY;
        for radius in [0.0, 0.1, 0.2, 1.0] {
            let near = programme.near(&costs, 0.5, &from, radius).unwrap();
            let moved = programme.moved(&from, near.rules());
            assert!(moved <= radius + 1e-12, "{moved} of {radius}");
            assert!(near.solution.objective <= last + 1e-12);
            last = near.solution.objective;
            let density = programme.densities(near.rules())[&1024];
            assert!(density <= 0.5 + 1e-9);
        }
        assert_eq!(last, free.solution.objective);
        // A tighter budget cannot be met without moving.
        let tight = programme.near(&costs, 0.25, &from, 0.0).unwrap();
        assert!(programme.densities(tight.rules())[&1024] <= 0.25 + 1e-9);
        let moved = programme.moved(&from, tight.rules());
        assert!((moved - 0.25).abs() < 0.02, "{moved}");
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
