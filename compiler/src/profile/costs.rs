//! From curves to the numbers that the solver minimizes: `cost[head][candidate]`.
//!
//! A term is a kind of sample at a length. Scaled to [`Scale::Shares`] each is divided by its sum of absolute costs over
//! all heads and candidates, so that no kind and no length outweighs another by its units alone; in [`Scale::Nats`] a
//! term stays the predicted change of the mean loss, and kinds of one group are averaged. Terms are then weighed and
//! added.
//!
//! A rule is priced by the window that it leaves: a plan may have a narrower sink and finer steps than the curves, between
//! whose points costs are interpolated. Tokens behind the first few of a sink are worth next to nothing.
//!
//! A constrained length beyond the longest profile has no curve of its own. Left out, rules that agree at the
//! profiled lengths would tie there, and the budget of the length that an engine runs at would go to waste. It
//! borrows the longest profile's curve at the same share of the text: an assumption, not a measurement, which
//! a profile at that length replaces.

use std::collections::BTreeMap;

use moa_lm::Estimator;
use moa_mask::{HeadRule, MaskGrid};

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

/// Costs of `candidates` on `grid` for every head, `[layer * kv_heads + kv_head][candidate]` flattened, at the profiled lengths
/// and at those of `constrained` that lie beyond them.
pub(crate) fn costs(
    curves: &Curves,
    spec: &CostSpec,
    candidates: &[HeadRule],
    grid: MaskGrid,
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
        let places: Vec<Place> = candidates
            .iter()
            .map(|rule| {
                let mask = rule.mask(context, grid);
                if mask.span() >= context {
                    return Place::last(bins);
                }
                let window = f64::from(mask.window) * f64::from(profiled) / f64::from(context);
                Place::of(window, curves.grid, profiled, bins)
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
                    let curve = &curve[head * bins..][..bins];
                    places.iter().map(move |place| place.on(curve))
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

/// A place on a curve: from one point towards another.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    from: usize,
    to: usize,
    share: f64,
}

impl Place {
    /// The point that hides nothing.
    fn last(bins: usize) -> Self {
        Self {
            from: bins - 1,
            to: bins - 1,
            share: 0.0,
        }
    }

    /// The place of a window on a curve of `bins` points on `grid` over a text of `len` tokens: between two points by the
    /// logarithm, since each doubling tells about as much.
    fn of(window: f64, grid: MaskGrid, len: u32, bins: usize) -> Self {
        let (sink, block) = (f64::from(grid.sink()), f64::from(grid.block()));
        let at = |bin: usize| {
            if bin + 1 == bins {
                f64::from(len)
            } else {
                (block * (bin + 1) as f64 - sink).max(1.0)
            }
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number of blocks, not negative"
        )]
        let whole = (((window + sink) / block).floor() as usize).max(1);
        let from = whole - 1;
        if from + 1 >= bins {
            return Self::last(bins);
        }
        let (low, high) = (at(from), at(from + 1));
        let share = if high > low {
            ((window / low).ln() / (high / low).ln()).clamp(0.0, 1.0)
        } else {
            0.0
        };
        Self {
            from,
            to: from + 1,
            share,
        }
    }

    fn on(self, curve: &[f64]) -> f64 {
        let (from, to) = (curve[self.from], curve[self.to]);
        from + (to - from) * self.share
    }
}

#[cfg(test)]
mod tests {
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
        let shares = CostSpec::new(Estimator::JointAbs);
        let found = costs(&curves, &shares, &rules, grid, &[16]);
        assert_eq!(found, [0.75, 0.25, 0.0, 0.75, 0.25, 0.0]);
        // Twice the length: windows of 4 and 8 tokens of 32 are 2 of 16, half-way between 1 and 4, and 4.
        let longer = costs(&curves, &shares, &rules, grid, &[16, 32]);
        let scale = 3.5 + 3.0;
        let expected = [0.75 + 3.5 / scale, 0.25 + 3.0 / scale, 0.0];
        for (cost, expected) in longer.iter().zip([expected, expected].concat()) {
            assert!((cost - expected).abs() < 1e-12, "{longer:?}");
        }

        // In nats: the mean over kinds, with the second kind at twice its weight.
        let spec = CostSpec {
            scale: Scale::Nats,
            kinds: BTreeMap::from([("b".to_owned(), 2.0), ("task".to_owned(), 1.0)]),
            ..CostSpec::new(Estimator::JointAbs)
        };
        assert_eq!(
            costs(&curves, &spec, &rules, grid, &[16]),
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
    fn windows_decide_where_a_plan_has_another_grid() {
        let curves = MaskGrid::new(64, 64).unwrap();
        let place = |window: f64| {
            let place = Place::of(window, curves, 1000, 16);
            (place.from, (place.share * 100.0).round() / 100.0)
        };
        assert_eq!(place(1.0), (0, 0.0));
        assert_eq!(place(8.0), (0, 0.5), "half-way from 1 to 64");
        assert_eq!(place(64.0), (1, 0.0));
        assert_eq!(place(240.0), (3, 0.78), "from 192 to 256");
        assert_eq!(place(896.0), (14, 0.0));
        assert_eq!(place(960.0), (15, 0.0), "with the sink that is all");
        // The same window costs the same, whatever the sink.
        let curve: Vec<f64> = (0..16).map(|bin| f64::from(15 - bin)).collect();
        let all = Curves::of_kinds((1, 1), curves, 1000, [("a", curve)]);
        let spec = CostSpec {
            scale: Scale::Nats,
            ..CostSpec::new(Estimator::JointAbs)
        };
        let rule = |span| [HeadRule::Exact { span }];
        let narrow = MaskGrid::new(16, 16).unwrap();
        let wide = costs(&all, &spec, &rule(64 + 256), curves, &[]);
        assert_eq!(wide, [11.0]);
        assert_eq!(costs(&all, &spec, &rule(16 + 256), narrow, &[]), wide);
    }

    #[test]
    fn monotone_curves_never_rise_with_the_span() {
        let mut curve = [5.0, 1.0, 3.0, -2.0, -1.0];
        make_monotone(&mut curve);
        assert_eq!(curve, [5.0, 3.0, 3.0, -1.0, -1.0]);
    }
}
