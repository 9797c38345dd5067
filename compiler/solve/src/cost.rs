//! From influence curves to the cost of every rule on every head.

use moa_mask::{HeadRule, MaskGrid};

use crate::{Error, Result};

/// The measured influence at one length, and how much it counts.
#[derive(Debug, Clone, PartialEq)]
pub struct CostTerm {
    /// The profiled length in tokens.
    pub context: u32,
    /// Factor of this term in the sum.
    pub weight: f64,
    /// `curves[layer * kv_heads + kv_head][s]`: cost of a span of `block * (s + 1)` tokens, `ceil(context / block)`
    /// entries a head.
    pub curves: Vec<Vec<f64>>,
}

impl CostTerm {
    /// The weight under which the absolute costs of all heads and `candidates` sum to 1, so that terms of different
    /// lengths or tasks count alike. 1 where all costs are zero.
    ///
    /// # Errors
    ///
    /// Curves of the wrong length.
    pub fn equalizing_weight(&self, candidates: &[HeadRule], grid: MaskGrid) -> Result<f64> {
        let mut total = 0.0;
        self.check(self.curves.len(), grid)?;
        for rule in candidates {
            for curve in &self.curves {
                total += cost_of(curve, *rule, self.context, grid).abs();
            }
        }
        Ok(if total > 0.0 { 1.0 / total } else { 1.0 })
    }

    fn check(&self, heads: usize, grid: MaskGrid) -> Result<()> {
        if self.curves.len() != heads {
            return Err(Error::WrongLength {
                what: format!("list of curves at N={}", self.context),
                got: self.curves.len(),
                expected: heads,
            });
        }
        let blocks = self.context.div_ceil(grid.block()) as usize;
        for (head, curve) in self.curves.iter().enumerate() {
            if curve.len() != blocks || blocks == 0 {
                return Err(Error::WrongLength {
                    what: format!("curve of head {head} at N={}", self.context),
                    got: curve.len(),
                    expected: blocks.max(1),
                });
            }
        }
        if !self.weight.is_finite() {
            return Err(Error::OutOfRange {
                what: format!("weight at N={}", self.context),
                got: self.weight,
                expected: "a finite number",
            });
        }
        Ok(())
    }
}

fn cost_of(curve: &[f64], rule: HeadRule, context: u32, grid: MaskGrid) -> f64 {
    // An explicit span between two blocks is charged as the smaller one: its cost is not underestimated.
    let block = (rule.span(context, grid) / grid.block()).max(1) as usize - 1;
    curve.get(block).or(curve.last()).copied().unwrap_or(0.0)
}

/// The table [`crate::Problem::costs`]: `[layer * kv_heads + kv_head][candidate]`, the weighted sum over `terms`.
///
/// # Errors
///
/// Curves that do not cover their length, or whose number of heads differs between terms.
pub fn sum_costs(terms: &[CostTerm], candidates: &[HeadRule], grid: MaskGrid) -> Result<Vec<f64>> {
    let heads = terms.first().map_or(0, |term| term.curves.len());
    let mut costs = vec![0.0; heads * candidates.len()];
    for term in terms {
        term.check(heads, grid)?;
        for (head, curve) in term.curves.iter().enumerate() {
            let row = &mut costs[head * candidates.len()..][..candidates.len()];
            for (cost, rule) in row.iter_mut().zip(candidates) {
                *cost += term.weight * cost_of(curve, *rule, term.context, grid);
            }
        }
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_at_the_span_of_each_rule() {
        let grid = MaskGrid::new(4, 4).unwrap();
        let candidates = [
            HeadRule::Elastic {
                alpha: 0.0,
                beta: 0.0,
            },
            HeadRule::Elastic {
                alpha: 0.0,
                beta: 0.5,
            },
            HeadRule::DENSE,
            HeadRule::Exact { span: 15 },
            HeadRule::Exact { span: 99 },
        ];
        let curve: Vec<f64> = (0..5).map(|block| f64::from(10 - block)).collect();
        let mut terms = vec![CostTerm {
            context: 18,
            weight: 2.0,
            curves: vec![curve.clone(), vec![0.0; 5]],
        }];
        // Spans 8, 12 (half of 18 rounded up), 20, 15 and 99 at blocks of 4.
        let costs = sum_costs(&terms, &candidates, grid).unwrap();
        assert_eq!(costs[..5], [18.0, 16.0, 12.0, 16.0, 12.0]);
        assert_eq!(costs[5..], [0.0; 5]);
        let weight = terms[0].equalizing_weight(&candidates, grid).unwrap();
        assert!((weight - 1.0 / 37.0).abs() < 1e-15);

        terms[0].curves[1].pop();
        assert_eq!(
            sum_costs(&terms, &candidates, grid)
                .unwrap_err()
                .to_string(),
            "curve of head 1 at N=18 holds 4 numbers, expected 5"
        );
    }
}
