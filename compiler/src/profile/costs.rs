//! From curves to the numbers that the solver minimizes: `cost[head][candidate]`.
//!
//! Each term (a kind of sample at a length) is divided by its sum of absolute costs over all heads and
//! candidates, so that no kind and no length outweighs another by its units alone; terms are then added.

use moa_lm::Estimator;
use moa_mask::HeadRule;

use super::curves::Curves;

/// Costs of `candidates` for every head, `[layer * kv_heads + kv_head][candidate]` flattened.
pub(crate) fn costs(curves: &Curves, estimator: Estimator, candidates: &[HeadRule]) -> Vec<f64> {
    let heads = curves.layers * curves.kv_heads;
    let index = Estimator::ALL
        .iter()
        .position(|&known| known == estimator)
        .unwrap_or_default();
    let mut total = vec![0.0; heads * candidates.len()];
    for (&context, length) in &curves.lengths {
        let bins = curves.bins(context);
        let bin_of: Vec<usize> = candidates
            .iter()
            .map(|rule| {
                let span = rule.span(context, curves.grid);
                (span.div_ceil(curves.grid.block()).max(1) as usize).min(bins) - 1
            })
            .collect();
        for kind in length.kinds.values() {
            let curve = &kind.mean[index];
            let term: Vec<f64> = (0..heads)
                .flat_map(|head| bin_of.iter().map(move |&bin| curve[head * bins + bin]))
                .collect();
            let scale: f64 = term.iter().map(|cost| cost.abs()).sum();
            if scale > 0.0 {
                for (sum, cost) in total.iter_mut().zip(&term) {
                    *sum += cost / scale;
                }
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use moa_mask::MaskGrid;

    use super::super::curves::{KindCurves, LengthCurves};
    use super::*;

    #[test]
    fn terms_weigh_the_same_whatever_their_units() {
        let grid = MaskGrid::new(4, 4).unwrap();
        // Two heads, four bins; the first kind cares about head 0, the second, in large units, about head 1.
        let kind = |curve: [f64; 8]| KindCurves {
            samples: 1,
            mean: vec![curve.to_vec(); Estimator::ALL.len()],
        };
        let kinds = BTreeMap::from([
            (
                "a".to_owned(),
                kind([4.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            ),
            (
                "b".to_owned(),
                kind([0.0, 0.0, 0.0, 0.0, 400.0, 300.0, 100.0, 0.0]),
            ),
        ]);
        let curves = Curves {
            layers: 1,
            kv_heads: 2,
            grid,
            lengths: BTreeMap::from([(
                16,
                LengthCurves {
                    kinds,
                    blocks: None,
                },
            )]),
            metadata: BTreeMap::new(),
        };
        let rules = [
            HeadRule::Elastic {
                alpha: 8.0,
                beta: 0.0,
            },
            HeadRule::Elastic {
                alpha: 12.0,
                beta: 0.0,
            },
            HeadRule::DENSE,
        ];
        let found = costs(&curves, Estimator::JointAbs, &rules);
        assert_eq!(found, [0.75, 0.25, 0.0, 0.75, 0.25, 0.0]);
    }
}
