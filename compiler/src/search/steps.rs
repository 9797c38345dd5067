//! Re-linearisation: tighten the budget in steps, and profile the model as masked so far before each.
//!
//! Influence holds at the point where it was measured, and a quarter of the cache is far from the dense model. The joint
//! formula holds at any plan, so each step asks again what every other window of every head would change, here: to first order,
//! which way the loss falls, and to second order, how far the outputs move. Their sum is minimized under the next budget
//! (a damped Newton step). At the target density a plan is taken only if it measures better on held-out samples than the best so
//! far; otherwise the second order counts for more, as in Levenberg's and Marquardt's method, and the step is shorter.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::measure::Measured;
use crate::profile::Programme;
use crate::stages::Stages;

/// Plans that one profile at the density may propose, each nearer than the one before.
const TRIES: usize = 3;
/// Standard errors that count against a change.
const ERRORS: f64 = 2.0;
/// What the weight of the second order is multiplied by after a failure.
const STIFFER: f64 = 4.0;

/// How the search goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepSpec {
    pub(crate) density: f64,
    pub(crate) steps: usize,
    pub(crate) rounds: usize,
    pub(crate) damping: f64,
    pub(crate) curvature: f64,
    pub(crate) exchanges: usize,
}

/// What a step was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StepKind {
    /// The target density straight from the dense profile.
    OneShot,
    /// A budget on the way, and the last of them.
    Tighten,
    /// Another step at the target density.
    Round,
    /// Cache moved from one head to another.
    Exchange,
    /// One plan of a front.
    Front,
}

/// One plan that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) kind: StepKind,
    pub(crate) number: usize,
    /// Bound on kv_density.
    pub(crate) density: f64,
    /// Weight that the second order had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) curvature: Option<f64>,
    /// Share of the cache that it moved.
    pub(crate) moved: f64,
    /// Change of the loss that the model predicted, in nats; only between masked plans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) predicted: Option<f64>,
    pub(crate) measured: Measured,
    /// Whether it is the best plan at the target density so far.
    pub(crate) accepted: bool,
    /// What set the plan apart on a front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<String>,
    /// Index of each head's rule.
    pub(crate) choice: Vec<usize>,
}

impl Step {
    /// What people call it: its label, or its kind and number.
    pub(crate) fn name(&self) -> String {
        self.label
            .clone()
            .unwrap_or_else(|| format!("{:?} {}", self.kind, self.number))
    }
}

/// What is known near a plan: tables `[head][rule]` of what giving a head another rule changes, in nats.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Local {
    /// The loss, to first order; from any origin, only differences count.
    pub(crate) first: Vec<f64>,
    /// Half the squared distance of outputs: 0 for the rule that a head has.
    pub(crate) second: Vec<f64>,
    /// Standard error of the first order: samples are few, and effects on single ones are large.
    pub(crate) error: Vec<f64>,
}

/// The model, as a search sees it.
pub(crate) trait Landscape {
    /// Costs of the programme's rules seen from the dense model, in several mixtures; the first begins the path.
    fn starts(&mut self) -> anyhow::Result<Vec<Vec<f64>>>;

    /// What is known near a choice. `part` counts: every call gets samples that no other part got.
    fn model(&mut self, at: &[usize], part: usize) -> anyhow::Result<Local>;

    /// What a choice costs on held-out samples.
    fn measure(&mut self, choice: &[usize]) -> anyhow::Result<Measured>;

    /// Told of every plan that was measured.
    fn step(&mut self, step: &Step) -> anyhow::Result<()>;
}

impl Local {
    /// Costs of rules: a change must promise more than the samples can feign, and than what lies beyond the first order.
    fn costs(&self, curvature: f64) -> Vec<f64> {
        let doubts = self.second.iter().zip(&self.error);
        self.first
            .iter()
            .zip(doubts)
            .map(|(first, (second, error))| first + curvature * (second + ERRORS * error))
            .collect()
    }

    /// What they say of a change of plan.
    fn change(&self, from: &[usize], to: &[usize], curvature: f64) -> f64 {
        let rules = self.first.len() / from.len().max(1);
        let costs = self.costs(curvature);
        costs
            .chunks_exact(rules)
            .zip(from.iter().zip(to))
            .map(|(costs, (&from, &to))| costs[to] - costs[from])
            .sum()
    }
}

/// Where a search at a wider density ended: its successor goes on from there.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    density: f64,
    choice: Vec<usize>,
    mean: Option<Vec<f64>>,
}

/// Budgets below that of a start, down to the density, in equal ratios.
fn budgets_below(start: f64, density: f64, steps: usize) -> Vec<f64> {
    let steps = steps.max(1);
    let ratio = density / start;
    (1..=steps)
        .map(|step| {
            if step == steps {
                density
            } else {
                start * ratio.powf(step as f64 / steps as f64)
            }
        })
        .collect()
}

/// Budgets from the square root of the density down to it, in equal ratios.
fn budgets(density: f64, steps: usize) -> Vec<f64> {
    let steps = steps.max(1);
    (1..=steps)
        .map(|step| {
            if step == steps {
                density
            } else {
                let share = 0.5 + 0.5 * (step - 1) as f64 / (steps - 1) as f64;
                density.powf(share)
            }
        })
        .collect()
}

/// The best plan found, and every one that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) best: Step,
    pub(crate) steps: Vec<Step>,
    mean: Option<Vec<f64>>,
}

impl Found {
    /// Where a search at a narrower density goes on.
    pub(crate) fn start(&self) -> Start {
        Start {
            density: self.best.density,
            choice: self.best.choice.clone(),
            mean: self.mean.clone(),
        }
    }
}

struct Search<'a> {
    programme: &'a Programme,
    spec: &'a StepSpec,
    start: Option<&'a Start>,
    landscape: &'a mut dyn Landscape,
    stages: &'a Stages,
    /// Costs of visited points, later ones weighing more.
    mean: Option<Vec<f64>>,
    best: Option<Step>,
    steps: Vec<Step>,
}

/// Searches for a plan: from the dense model, or from where a search at a wider density ended.
pub(crate) fn search(
    programme: &Programme,
    spec: &StepSpec,
    start: Option<&Start>,
    landscape: &mut dyn Landscape,
    stages: &Stages,
) -> anyhow::Result<Found> {
    let mut search = Search {
        programme,
        spec,
        start,
        landscape,
        stages,
        mean: start.and_then(|start| start.mean.clone()),
        best: None,
        steps: Vec::new(),
    };
    search.tighten()?;
    search.rounds()?;
    search.exchanges()?;
    Ok(Found {
        best: search.best.context("no plan was measured")?,
        steps: search.steps,
        mean: search.mean,
    })
}

impl Search<'_> {
    fn tighten(&mut self) -> anyhow::Result<()> {
        let dense = self.programme.dense();
        let spec = self.spec;
        let starts = self.landscape.starts()?;
        let mut tried = Vec::new();
        for (number, costs) in starts.iter().enumerate() {
            let to = self.solve(costs, spec.density)?;
            if tried.contains(&to) {
                continue;
            }
            tried.push(to.clone());
            let kind = StepKind::OneShot;
            self.take((kind, number, spec.density), &dense, &to, None)?;
        }
        let (mut current, budgets) = match self.start {
            Some(start) => (
                start.choice.clone(),
                budgets_below(start.density, spec.density, spec.steps),
            ),
            None => {
                let mut budgets = budgets(spec.density, spec.steps);
                let widest = budgets.remove(0);
                let first = starts.first().context("no costs at the dense model")?;
                let to = self.solve(first, widest)?;
                if !budgets.is_empty() {
                    self.take((StepKind::Tighten, 0, widest), &dense, &to, None)?;
                }
                (to, budgets)
            }
        };
        for (number, budget) in budgets.into_iter().enumerate() {
            let local = self.visit(&current, number + 1)?;
            let next = self.solve(&local.costs(spec.curvature), budget)?;
            let how = Some((&local, spec.curvature));
            self.take(
                (StepKind::Tighten, number + 1, budget),
                &current,
                &next,
                how,
            )?;
            current = next;
        }
        Ok(())
    }

    /// Steps at the density: each profiles the best plan and goes as far as measures better.
    fn rounds(&mut self) -> anyhow::Result<()> {
        let mut curvature = self.spec.curvature;
        for number in 0..self.spec.rounds {
            let current = self.best()?.choice.clone();
            // Tightening has taken parts up to its number of steps.
            let local = self.visit(&current, self.spec.steps + 1 + number)?;
            let mut tried = Vec::new();
            for _ in 0..TRIES {
                let next = self.solve(&local.costs(curvature), self.spec.density)?;
                if next == current {
                    break;
                }
                if !tried.contains(&next) {
                    let how = Some((&local, curvature));
                    let kind = (StepKind::Round, number, self.spec.density);
                    if self.take(kind, &current, &next, how)? {
                        break;
                    }
                    tried.push(next);
                }
                curvature *= STIFFER;
            }
            // Other samples may know a way that these did not.
            curvature = (curvature / STIFFER).max(self.spec.curvature);
        }
        Ok(())
    }

    /// Coordinate search: the head that should gain most from its next wider rule takes cache from the head that should
    /// lose least by its next narrower one; pairs in the order of what they promise.
    fn exchanges(&mut self) -> anyhow::Result<()> {
        let mut tried = 0;
        while tried < self.spec.exchanges {
            let current = self.best()?.choice.clone();
            let Some(costs) = self.mean.clone() else {
                return Ok(());
            };
            let mut any = false;
            for next in self.pairs(&costs, &current) {
                if tried == self.spec.exchanges {
                    break;
                }
                tried += 1;
                let local = Local {
                    second: vec![0.0; costs.len()],
                    error: vec![0.0; costs.len()],
                    first: costs.clone(),
                };
                let kind = (StepKind::Exchange, tried - 1, self.spec.density);
                any = self.take(kind, &current, &next, Some((&local, 0.0)))?;
                if any {
                    break;
                }
            }
            if !any {
                break;
            }
        }
        Ok(())
    }

    /// Exchanges within the budget, the most promising first.
    fn pairs(&self, costs: &[f64], current: &[usize]) -> Vec<Vec<usize>> {
        let rules = self.programme.rules.len();
        let longest = self.programme.lengths.last().copied().unwrap_or(1);
        let span = |rule: usize| self.programme.rules[rule].span(longest, self.programme.grid);
        let mut order: Vec<usize> = (0..rules).collect();
        order.sort_by_key(|&rule| span(rule));
        let place = |rule: usize| order.iter().position(|&other| other == rule).unwrap_or(0);
        let neighbor = |rule: usize, wider: bool| -> Option<usize> {
            let at = place(rule);
            let own = span(rule);
            if wider {
                order[at..].iter().copied().find(|&other| span(other) > own)
            } else {
                order[..at]
                    .iter()
                    .rev()
                    .copied()
                    .find(|&other| span(other) < own)
            }
        };
        let mut moves: [Vec<(f64, usize, usize)>; 2] = [Vec::new(), Vec::new()];
        for (head, &rule) in current.iter().enumerate() {
            for (list, wider) in moves.iter_mut().zip([true, false]) {
                if let Some(next) = neighbor(rule, wider) {
                    let change = costs[head * rules + next] - costs[head * rules + rule];
                    list.push((change, head, next));
                }
            }
        }
        let mut pairs: Vec<(f64, Vec<usize>)> = Vec::new();
        for &(gain, wide, wider) in &moves[0] {
            for &(loss, narrow, narrower) in &moves[1] {
                if wide == narrow {
                    continue;
                }
                let mut next = current.to_vec();
                next[wide] = wider;
                next[narrow] = narrower;
                let fits = self
                    .programme
                    .densities(&next)
                    .values()
                    .all(|density| *density <= self.spec.density + 1e-9);
                if fits {
                    pairs.push((gain + loss, next));
                }
            }
        }
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        pairs.truncate(self.spec.exchanges);
        pairs.into_iter().map(|(_, next)| next).collect()
    }

    fn best(&self) -> anyhow::Result<&Step> {
        self.best.as_ref().context("no plan was measured")
    }

    /// What is known near a choice: the first order as a mean over visited points that moves towards this one.
    fn visit(&mut self, at: &[usize], part: usize) -> anyhow::Result<Local> {
        let mut local = self.landscape.model(at, part)?;
        let damping = self.spec.damping;
        if let Some(mean) = &self.mean {
            for (new, old) in local.first.iter_mut().zip(mean) {
                *new = (damping * old + *new) / (1.0 + damping);
            }
        }
        self.mean = Some(local.first.clone());
        Ok(local)
    }

    fn solve(&self, costs: &[f64], density: f64) -> anyhow::Result<Vec<usize>> {
        let solve = || self.programme.solve(costs, density);
        let chosen = self.stages.time("solving", solve)?;
        Ok(chosen.rules().to_vec())
    }

    /// Measures a plan and keeps it if it meets the density and is the best so far.
    fn take(
        &mut self,
        (kind, number, density): (StepKind, usize, f64),
        from: &[usize],
        to: &[usize],
        how: Option<(&Local, f64)>,
    ) -> anyhow::Result<bool> {
        let measured = self.landscape.measure(to)?;
        let within = density <= self.spec.density;
        let better = self
            .best
            .as_ref()
            .is_none_or(|best| measured.loss < best.measured.loss);
        let step = Step {
            kind,
            number,
            density,
            curvature: how.map(|(_, curvature)| curvature),
            moved: self.programme.moved(from, to),
            predicted: how.map(|(local, curvature)| local.change(from, to, curvature)),
            measured,
            accepted: within && better,
            label: None,
            choice: to.to_vec(),
        };
        self.landscape.step(&step)?;
        let accepted = step.accepted;
        if accepted {
            self.best = Some(step.clone());
        }
        self.steps.push(step);
        Ok(accepted)
    }
}

#[cfg(test)]
mod tests;
