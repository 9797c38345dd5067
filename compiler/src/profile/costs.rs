//! From curves to the numbers that the solver minimizes: `cost[head][candidate]`.
//!
//! A term is a kind of sample at a length. Scaled to [`Scale::Shares`] each is divided by its sum of absolute costs over
//! all heads and candidates, so that no kind and no length outweighs another by its units alone; in [`Scale::Nats`] a
//! term stays the predicted change of the mean loss, and kinds of one group are averaged. Terms are then weighed and
//! added.
//!
//! A constrained length beyond the longest profile has no curve of its own. Left out, rules that agree at the
//! profiled lengths would tie there, and the budget of the length that an engine runs at would go to waste. It
//! borrows the longest profile's curve at the same share of the text: an assumption, not a measurement, which
//! a profile at that length replaces.

use std::collections::BTreeMap;

use moa_lm::Estimator;
use moa_mask::HeadRule;

use super::curves::Curves;
use crate::cli::Scale;

/// Kinds of samples whose loss is that of a language model: the rest asks for something in the text.
const TEXT_KINDS: [&str; 2] = ["prose", "text"];

/// Whether samples of a kind are plain text.
pub(crate) fn is_text(kind: &str) -> bool {
    TEXT_KINDS.contains(&kind)
}

/// Weight of text against tasks where both are in nats: .025 nats of divergence on text weigh as much as .1 on an answer.
pub(crate) const TEXT_WEIGHT: f64 = 4.0;
/// Nats that an answer loses for a nat that squared effects predict, at the usual temperature; texts lose what is predicted.
pub(crate) const TASK_NATS: f64 = 0.25;

/// How curves become costs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CostSpec {
    pub(crate) estimator: Estimator,
    pub(crate) scale: Scale,
    /// Make curves non-increasing in the span first, from the widest span down: a wider window then never costs more.
    pub(crate) monotone: bool,
    /// Weight of a kind; `task` and `text` stand for all kinds of their group; 1 where nothing is said.
    pub(crate) kinds: BTreeMap<String, f64>,
    /// Weight of a length; 1 where nothing is said.
    pub(crate) lengths: BTreeMap<u32, f64>,
}

impl CostSpec {
    /// Every term as it is, with weight 1.
    pub(crate) fn new(estimator: Estimator) -> Self {
        Self {
            estimator,
            scale: Scale::Shares,
            monotone: false,
            kinds: BTreeMap::new(),
            lengths: BTreeMap::new(),
        }
    }

    /// What is minimized unless asked otherwise: divergences in nats, with text at its weight; other estimators have no common
    /// units and are added as shares.
    pub(crate) fn usual(estimator: Estimator, scale: Option<Scale>) -> Self {
        let scale = scale.unwrap_or(if estimator == Estimator::JointSquare {
            Scale::Nats
        } else {
            Scale::Shares
        });
        let kinds = match scale {
            Scale::Nats => BTreeMap::from([
                ("task".to_owned(), TASK_NATS),
                ("text".to_owned(), TEXT_WEIGHT),
            ]),
            Scale::Shares => BTreeMap::new(),
        };
        Self {
            scale,
            kinds,
            ..Self::new(estimator)
        }
    }

    fn weight(&self, kind: &str, length: u32) -> f64 {
        let group = if is_text(kind) { "text" } else { "task" };
        let of_kind = self.kinds.get(kind).or_else(|| self.kinds.get(group));
        let of_length = self.lengths.get(&length);
        of_kind.copied().unwrap_or(1.0) * of_length.copied().unwrap_or(1.0)
    }
}

/// Costs of `candidates` for every head, `[layer * kv_heads + kv_head][candidate]` flattened, at the profiled lengths
/// and at those of `constrained` that lie beyond them.
pub(crate) fn costs(
    curves: &Curves,
    spec: &CostSpec,
    candidates: &[HeadRule],
    constrained: &[u32],
) -> Vec<f64> {
    let heads = curves.layers * curves.kv_heads;
    let index = spec.estimator.index();
    let mut total = vec![0.0; heads * candidates.len()];
    let Some(&longest) = curves.lengths.keys().next_back() else {
        return total;
    };
    let own = curves.lengths.keys().map(|&length| (length, length));
    let borrowed = constrained
        .iter()
        .filter(|&&context| context > longest)
        .map(|&context| (context, longest));
    let terms: Vec<(u32, u32)> = own.chain(borrowed).collect();
    for &(context, profiled) in &terms {
        let bins = curves.bins(profiled);
        let bin_of: Vec<usize> = candidates
            .iter()
            .map(|rule| {
                let span = rule.span(context, curves.grid);
                bin(span, context, profiled, curves.grid.block()).min(bins - 1)
            })
            .collect();
        let kinds = &curves.lengths[&profiled].kinds;
        for (name, kind) in kinds {
            let weight = spec.weight(name, context);
            if weight == 0.0 {
                continue;
            }
            let mut curve = kind.mean[index].clone();
            if spec.monotone {
                curve.chunks_mut(bins).for_each(make_monotone);
            }
            let term: Vec<f64> = (0..heads)
                .flat_map(|head| {
                    let curve = &curve;
                    bin_of.iter().map(move |&bin| curve[head * bins + bin])
                })
                .collect();
            let scale: f64 = match spec.scale {
                Scale::Shares => term.iter().map(|cost| cost.abs()).sum(),
                Scale::Nats => {
                    let group = kinds.keys().filter(|other| is_text(other) == is_text(name));
                    (group.count() * terms.len()) as f64
                }
            };
            if scale > 0.0 {
                for (sum, cost) in total.iter_mut().zip(&term) {
                    *sum += cost * weight / scale;
                }
            }
        }
    }
    total
}

/// Lifts every cost to at least that of the next wider span.
fn make_monotone(curve: &mut [f64]) {
    let mut least = f64::NEG_INFINITY;
    for cost in curve.iter_mut().rev() {
        least = least.max(*cost);
        *cost = least;
    }
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
    use moa_mask::MaskGrid;

    use super::*;

    #[test]
    fn terms_weigh_the_same_whatever_their_units() {
        let grid = MaskGrid::new(4, 4).unwrap();
        // Two heads, four bins; the first kind cares about head 0, the second, in large units, about head 1.
        let kinds = [
            ("a", vec![4.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            ("b", vec![0.0, 0.0, 0.0, 0.0, 400.0, 300.0, 100.0, 0.0]),
        ];
        let curves = Curves::of_kinds((1, 2), grid, 16, kinds);
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
        let found = costs(&curves, &CostSpec::new(Estimator::JointAbs), &rules, &[16]);
        assert_eq!(found, [0.75, 0.25, 0.0, 0.75, 0.25, 0.0]);
        // Twice the length: spans of 8, 12 and 32 tokens of 32 are 4, 8 (rounded up) and 16 of 16.
        let longer = costs(
            &curves,
            &CostSpec::new(Estimator::JointAbs),
            &rules,
            &[16, 32],
        );
        let scale = 4.0 + 3.0;
        let expected = [0.75 + 4.0 / scale, 0.25 + 3.0 / scale, 0.0];
        assert_eq!(longer, [expected, expected].concat());

        // In nats: the mean over kinds, with the second kind at twice its weight.
        let spec = CostSpec {
            scale: Scale::Nats,
            kinds: BTreeMap::from([("b".to_owned(), 2.0), ("task".to_owned(), 1.0)]),
            ..CostSpec::new(Estimator::JointAbs)
        };
        assert_eq!(
            costs(&curves, &spec, &rules, &[16]),
            [1.5, 0.5, 0.0, 300.0, 100.0, 0.0]
        );
    }

    #[test]
    fn only_divergences_are_added_in_nats_unless_asked() {
        let usual = |estimator, scale| {
            let spec = CostSpec::usual(estimator, scale);
            (
                spec.scale,
                spec.weight("prose", 1),
                spec.weight("needle", 1),
            )
        };
        let nats = (Scale::Nats, TEXT_WEIGHT, TASK_NATS);
        assert_eq!(usual(Estimator::JointSquare, None), nats);
        assert_eq!(usual(Estimator::PerEntry, Some(Scale::Nats)), nats);
        let shares = (Scale::Shares, 1.0, 1.0);
        assert_eq!(usual(Estimator::PerEntry, None), shares);
        assert_eq!(usual(Estimator::JointSquare, Some(Scale::Shares)), shares);
    }

    #[test]
    fn monotone_curves_never_rise_with_the_span() {
        let mut curve = [5.0, 1.0, 3.0, -2.0, -1.0];
        make_monotone(&mut curve);
        assert_eq!(curve, [5.0, 3.0, 3.0, -1.0, -1.0]);
    }
}
