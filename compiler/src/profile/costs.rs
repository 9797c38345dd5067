//! From curves to the numbers that the solver minimizes: `cost[head][candidate]`.
//!
//! Each term (a kind of sample at a length) is divided by its sum of absolute costs over all heads and
//! candidates, so that no kind and no length outweighs another by its units alone; terms are then added.
//!
//! A constrained length beyond the longest profile has no curve of its own. Left out, rules that agree at the
//! profiled lengths would tie there, and the budget of the length that an engine runs at would go to waste. It
//! borrows the longest profile's curve at the same share of the text: an assumption, not a measurement, which
//! a profile at that length replaces.

use moa_lm::Estimator;
use moa_mask::HeadRule;

use super::curves::Curves;

/// Costs of `candidates` for every head, `[layer * kv_heads + kv_head][candidate]` flattened, at the profiled lengths
/// and at those of `constrained` that lie beyond them.
pub(crate) fn costs(
    curves: &Curves,
    estimator: Estimator,
    candidates: &[HeadRule],
    constrained: &[u32],
) -> Vec<f64> {
    let heads = curves.layers * curves.kv_heads;
    let index = Estimator::ALL
        .iter()
        .position(|&known| known == estimator)
        .unwrap_or_default();
    let mut total = vec![0.0; heads * candidates.len()];
    let Some(&longest) = curves.lengths.keys().next_back() else {
        return total;
    };
    let own = curves.lengths.keys().map(|&length| (length, length));
    let borrowed = constrained
        .iter()
        .filter(|&&context| context > longest)
        .map(|&context| (context, longest));
    for (context, profiled) in own.chain(borrowed) {
        let bins = curves.bins(profiled);
        let bin_of: Vec<usize> = candidates
            .iter()
            .map(|rule| {
                let span = rule.span(context, curves.grid);
                bin(span, context, profiled, curves.grid.block()).min(bins - 1)
            })
            .collect();
        for kind in curves.lengths[&profiled].kinds.values() {
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

/// The bin of a curve of length `profiled` that a span at length `context` falls into, at the same share of the text.
fn bin(span: u32, context: u32, profiled: u32, block: u32) -> usize {
    let span = u64::from(span) * u64::from(profiled);
    let step = u64::from(block) * u64::from(context);
    // At most the number of blocks of a u32 length.
    usize::try_from(span.div_ceil(step.max(1)).max(1) - 1).unwrap_or(usize::MAX)
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
        let found = costs(&curves, Estimator::JointAbs, &rules, &[16]);
        assert_eq!(found, [0.75, 0.25, 0.0, 0.75, 0.25, 0.0]);
        // Twice the length: spans of 8, 12 and 32 tokens of 32 are 4, 8 (rounded up) and 16 of 16.
        let longer = costs(&curves, Estimator::JointAbs, &rules, &[16, 32]);
        let scale = 4.0 + 3.0;
        let expected = [0.75 + 4.0 / scale, 0.25 + 3.0 / scale, 0.0];
        assert_eq!(longer, [expected, expected].concat());
    }
}
