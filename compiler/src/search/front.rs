//! A front of one-shot plans: weights of tasks against text, and of lengths, each solved and measured.
//!
//! The curves that plans are chosen by are estimates; the choice is made by what plans measure on held-out samples, at
//! lengths that were profiled and at lengths that were not.

use std::collections::{BTreeMap, BTreeSet};

use super::measure::Bench;
use super::steps::{Step, StepKind};
use super::{Job, Searched};
use crate::evaluate::Scorer;
use crate::profile::{Chosen, CostSpec, Curves, SolveSpec, is_text, table};

/// Weights of text around the usual one.
const TEXT_WEIGHTS: [f64; 7] = [0.25, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0];
/// Weight of the other lengths where one is favored.
const OTHER_LENGTHS: f64 = 0.25;

/// What sets a plan of the front apart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) label: String,
    pub(crate) cost: CostSpec,
}

/// The weights to try around `base`, for profiles at `lengths` with these groups of kinds.
pub(crate) fn members(
    base: &CostSpec,
    lengths: &[u32],
    has_task: bool,
    has_text: bool,
) -> Vec<Member> {
    let texts: &[f64] = if has_task && has_text {
        &TEXT_WEIGHTS
    } else {
        &[1.0]
    };
    let mut emphases: Vec<(String, BTreeMap<u32, f64>)> =
        vec![("all lengths".into(), BTreeMap::new())];
    if lengths.len() > 1 {
        emphases.extend(lengths.iter().map(|&favored| {
            let weights = lengths
                .iter()
                .filter(|&&length| length != favored)
                .map(|&length| (length, OTHER_LENGTHS));
            (format!("length {favored}"), weights.collect())
        }));
    }
    let mut members = Vec::new();
    for (name, emphasis) in &emphases {
        for &text in texts {
            let mut cost = base.clone();
            if texts.len() > 1 {
                // What the user said of single kinds stays; the groups are swept.
                cost.kinds.insert("text".into(), text);
            }
            for (&length, &weight) in emphasis {
                *cost.lengths.entry(length).or_insert(1.0) *= weight;
            }
            members.push(Member {
                label: format!("text {text}, {name}"),
                cost,
            });
        }
    }
    members
}

impl Job<'_> {
    /// Solves and measures every member; the one that measures best is chosen.
    pub(super) fn front(
        &self,
        curves: &Curves,
        spec: &SolveSpec,
        scorer: &dyn Scorer,
        bench: &mut Bench<'_>,
    ) -> anyhow::Result<Searched> {
        let programme = self.programme(curves, spec);
        let stages = &self.opened.stages;
        let kinds: BTreeSet<&String> = curves
            .lengths
            .values()
            .flat_map(|length| length.kinds.keys())
            .collect();
        let lengths: Vec<u32> = curves.lengths.keys().copied().collect();
        let dense = programme.dense();
        let mut steps: Vec<Step> = Vec::new();
        let mut best: Option<(usize, Chosen)> = None;
        let all = members(
            &spec.cost,
            &lengths,
            kinds.iter().any(|kind| !is_text(kind)),
            kinds.iter().any(|kind| is_text(kind)),
        );
        for member in all {
            let costs = table(curves, &member.cost, &programme);
            let solve = || programme.solve(&costs, spec.density);
            let chosen = stages.time("solving", solve)?;
            if steps.iter().any(|step| step.choice == chosen.rules()) {
                continue;
            }
            let masks = |length| programme.masks(chosen.rules(), length);
            let measured = stages.time("measuring", || bench.measure(scorer, &masks))?;
            let better = best
                .as_ref()
                .is_none_or(|(at, _)| measured.loss < steps[*at].measured.loss);
            let step = Step {
                kind: StepKind::Front,
                number: steps.len(),
                density: spec.density,
                curvature: None,
                moved: programme.moved(&dense, chosen.rules()),
                predicted: None,
                measured,
                accepted: better,
                label: Some(member.label),
                choice: chosen.rules().to_vec(),
            };
            self.trace(&programme, spec, &step)?;
            if better {
                best = Some((steps.len(), chosen));
            }
            steps.push(step);
        }
        let Some((at, chosen)) = best else {
            return Err(crate::exit::Internal("a front without plans".into()).into());
        };
        let step = steps[at].clone();
        self.searched(curves, spec, &programme, &chosen, step, steps)
    }
}

/// Indices of points that no other beats in both numbers; smaller is better.
pub(crate) fn undominated(points: &[(f64, f64)]) -> BTreeSet<usize> {
    (0..points.len())
        .filter(|&own| {
            let (x, y) = points[own];
            !points
                .iter()
                .enumerate()
                .any(|(other, &(a, b))| a <= x && b <= y && (a < x || b < y || other < own))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use moa_lm::Estimator;

    use super::*;

    #[test]
    fn a_front_sweeps_groups_and_lengths() {
        let base = CostSpec::new(Estimator::JointAbs);
        let all = members(&base, &[1024, 2048], true, true);
        assert_eq!(all.len(), 3 * TEXT_WEIGHTS.len());
        let labels: BTreeSet<&str> = all.iter().map(|one| one.label.as_str()).collect();
        assert_eq!(labels.len(), all.len());
        assert!(all.iter().any(|one| one.cost
            == CostSpec {
                kinds: BTreeMap::from([("text".into(), 1.0)]),
                ..base.clone()
            }));
        assert_eq!(members(&base, &[1024], true, false).len(), 1);
    }

    #[test]
    fn dominated_points_go_and_equal_ones_stay_once() {
        let points = [(1.0, 3.0), (2.0, 2.0), (2.0, 2.0), (3.0, 3.0), (3.0, 1.0)];
        assert_eq!(undominated(&points), BTreeSet::from([0, 1, 4]));
    }
}
