//! The problem, and the checker that trusts no solver.

use moa_mask::{HeadRule, MaskGrid};

use crate::{Error, Infeasible, Result};

/// An upper bound on the mean `kv_density` of all heads at one declared context length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// The declared context length N in tokens.
    pub context: u32,
    /// Largest mean over KV heads of `min(S(N), N) / N`.
    pub kv_density: f64,
}

/// Which rules are on offer, what each costs on each head, and what the plan may keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Layers of the model.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// The rules on offer, the same for every head.
    pub candidates: Vec<HeadRule>,
    /// `costs[(layer * kv_heads + kv_head) * candidates.len() + candidate]`, summed over lengths. May be negative.
    pub costs: Vec<f64>,
    /// The budgets; without any, every head takes its cheapest rule.
    pub budgets: Vec<Budget>,
    /// Sink and block of the plan.
    pub grid: MaskGrid,
    /// Distinct rules that a layer may use; `None` for any number.
    pub max_rules_per_layer: Option<usize>,
}

/// A plan that does not fit its problem.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Not one rule per head, or an index past the candidates.
    #[error(
        "plan of {got} heads, expected {expected} heads with rules among {candidates} candidates"
    )]
    Shape {
        /// Heads in the plan.
        got: usize,
        /// Heads of the problem.
        expected: usize,
        /// Candidates of the problem.
        candidates: usize,
    },
    /// Too much memory at one length.
    #[error("kv_density at N={context} is {got}, expected at most {bound}")]
    Budget {
        /// The constrained length.
        context: u32,
        /// Density of the plan.
        got: f64,
        /// Its bound.
        bound: f64,
    },
    /// Too many distinct rules in a layer.
    #[error("layer {layer} uses {got} distinct rules, expected at most {limit}")]
    Rules {
        /// The layer.
        layer: usize,
        /// Its distinct rules.
        got: usize,
        /// The limit.
        limit: usize,
    },
}

impl Problem {
    /// KV heads of the whole model.
    pub fn heads(&self) -> usize {
        self.layers.saturating_mul(self.kv_heads)
    }

    /// Refuses numbers that state no problem.
    pub fn check(&self) -> Result<()> {
        for (what, count) in [
            ("layers", self.layers),
            ("KV heads", self.kv_heads),
            ("candidates", self.candidates.len()),
        ] {
            if count == 0 {
                return Err(Error::Empty { what });
            }
        }
        let expected = self.heads().saturating_mul(self.candidates.len());
        if self.costs.len() != expected {
            return Err(Error::WrongLength {
                what: "cost table".into(),
                got: self.costs.len(),
                expected,
            });
        }
        if let Some(at) = self.costs.iter().position(|cost| !cost.is_finite()) {
            return Err(Error::BadCost {
                head: at / self.candidates.len(),
                candidate: at % self.candidates.len(),
                got: self.costs[at],
            });
        }
        for (candidate, rule) in self.candidates.iter().enumerate() {
            rule.check(self.grid)
                .map_err(|source| Error::BadCandidate { candidate, source })?;
        }
        for budget in &self.budgets {
            if budget.context == 0 {
                return Err(Error::OutOfRange {
                    what: "context of a budget".into(),
                    got: 0.0,
                    expected: "at least 1 token",
                });
            }
            if !(budget.kv_density > 0.0 && budget.kv_density.is_finite()) {
                return Err(Error::OutOfRange {
                    what: format!("kv_density budget at N={}", budget.context),
                    got: budget.kv_density,
                    expected: "a finite number above 0",
                });
            }
        }
        if self.max_rules_per_layer == Some(0) {
            return Err(Error::OutOfRange {
                what: "rules per layer".into(),
                got: 0.0,
                expected: "at least 1",
            });
        }
        Ok(())
    }

    /// Keys that a candidate keeps at a budget's length, as [`moa_mask::density::kv_density`] counts them.
    pub(crate) fn kept(&self, candidate: usize, budget: &Budget) -> u64 {
        let mask = self.candidates[candidate].mask(budget.context, self.grid);
        u64::from(mask.span().min(budget.context))
    }

    /// Keys that all heads together may keep at a budget's length.
    pub(crate) fn capacity(&self, budget: &Budget) -> u64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of heads stay far below 2^53"
        )]
        let tokens = budget.kv_density * self.heads() as f64 * f64::from(budget.context);
        // The small addend undoes rounding of bounds such as 0.3; no bound is exceeded by more than 1e-11.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and `as` saturates"
        )]
        let tokens = (tokens + 1e-6).floor() as u64;
        tokens
    }

    /// Mean `kv_density` of a plan at a budget's length.
    fn density(&self, kept: u64, budget: &Budget) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a ratio of counts, good to 53 bits"
        )]
        let density = kept as f64 / (self.heads() as f64 * f64::from(budget.context));
        density
    }

    /// The first budget that even the smallest spans break.
    pub(crate) fn least_density_over_budget(&self) -> Option<Infeasible> {
        self.budgets.iter().find_map(|budget| {
            let least = (0..self.candidates.len())
                .map(|candidate| self.kept(candidate, budget))
                .min()?;
            let kept = least.saturating_mul(self.heads() as u64);
            (kept > self.capacity(budget)).then(|| Infeasible::Budget {
                context: budget.context,
                bound: budget.kv_density,
                least_density: self.density(kept, budget),
                least_span: u32::try_from(least).unwrap_or(u32::MAX),
            })
        })
    }

    /// Summed cost of a plan.
    pub(crate) fn objective(&self, rule_of_head: &[usize]) -> f64 {
        rule_of_head
            .iter()
            .zip(self.costs.chunks_exact(self.candidates.len()))
            .map(|(&rule, costs)| costs[rule])
            .sum()
    }

    /// Relative gap between a plan's cost and a bound. Costs may be negative and cancel, so the divisor has a floor.
    pub(crate) fn gap(&self, objective: f64, bound: f64) -> f64 {
        let range: f64 = self
            .costs
            .chunks_exact(self.candidates.len())
            .map(|costs| {
                let (low, high) = costs
                    .iter()
                    .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &cost| {
                        (low.min(cost), high.max(cost))
                    });
                high - low
            })
            .sum();
        relative_gap(objective, bound, range)
    }

    /// Checks a plan against every budget and the limit per layer, in whole tokens and without a solver.
    ///
    /// # Errors
    ///
    /// The first budget or layer that the plan breaks.
    pub fn verify(&self, rule_of_head: &[usize]) -> std::result::Result<(), Violation> {
        if rule_of_head.len() != self.heads()
            || rule_of_head
                .iter()
                .any(|&rule| rule >= self.candidates.len())
        {
            return Err(Violation::Shape {
                got: rule_of_head.len(),
                expected: self.heads(),
                candidates: self.candidates.len(),
            });
        }
        for budget in &self.budgets {
            let kept = rule_of_head
                .iter()
                .map(|&rule| self.kept(rule, budget))
                .sum();
            if kept > self.capacity(budget) {
                return Err(Violation::Budget {
                    context: budget.context,
                    got: self.density(kept, budget),
                    bound: budget.kv_density,
                });
            }
        }
        if let Some(limit) = self.max_rules_per_layer {
            for (layer, rules) in rule_of_head.chunks(self.kv_heads).enumerate() {
                let mut distinct = rules.to_vec();
                distinct.sort_unstable();
                distinct.dedup();
                if distinct.len() > limit {
                    return Err(Violation::Rules {
                        layer,
                        got: distinct.len(),
                        limit,
                    });
                }
            }
        }
        Ok(())
    }
}

/// `(objective - bound) / |objective|`, the divisor at least a millionth of `range`; 0 when both are equal.
pub(crate) fn relative_gap(objective: f64, bound: f64, range: f64) -> f64 {
    let difference = (objective - bound).max(0.0);
    if difference == 0.0 {
        0.0
    } else {
        difference / objective.abs().max(range * 1e-6).max(f64::MIN_POSITIVE)
    }
}
