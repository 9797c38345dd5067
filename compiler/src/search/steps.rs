//! Re-linearisation: tighten the budget in steps, and profile the model as masked so far before each.
//!
//! Influence holds at the point where it was measured, and a quarter of the cache is far from the dense model. The joint
//! formula holds at any plan, so each step asks again what every other window of every head would change, here: to first order,
//! which way the loss falls, and to second order, how far the outputs move. Their sum is minimized under the next budget
//! (a damped Newton step). At the target density a plan is taken only if it measures better on held-out samples than the best so
//! far, and the second order then counts for less; otherwise it counts for more, as in Levenberg's and Marquardt's method, and
//! the step is shorter.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::measure::Measured;
use crate::profile::Programme;
use crate::stages::Stages;

/// Plans that one profile at the density may propose, each nearer than the one before.
const TRIES: usize = 3;
/// Standard errors that count against a change.
const ERRORS: f64 = 2.0;
/// What the weight of the second order is multiplied by after a failure, and divided by after a success at once.
const STIFFER: f64 = 4.0;
/// How far the weight of the second order goes below its first value: a sixteenth never came true.
const LOOSEST: f64 = 4.0;
/// And above it.
const STIFFEST: f64 = 16.0;

/// How the search goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepSpec {
    pub(crate) density: f64,
    pub(crate) steps: usize,
    pub(crate) rounds: usize,
    pub(crate) damping: f64,
    pub(crate) curvature: f64,
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
}

/// What a table of costs says of a change of plan.
fn change(costs: &[f64], from: &[usize], to: &[usize]) -> f64 {
    let rules = costs.len() / from.len().max(1);
    costs
        .chunks_exact(rules)
        .zip(from.iter().zip(to))
        .map(|(costs, (&from, &to))| costs[to] - costs[from])
        .sum()
}

/// A plan that is to be measured, and what was known of it before.
struct Proposal<'a> {
    kind: StepKind,
    number: usize,
    density: f64,
    from: &'a [usize],
    to: &'a [usize],
    /// What proposed it, if it is a table at `from`, and its weight of the second order if it has one.
    costs: Option<&'a [f64]>,
    curvature: Option<f64>,
}

/// First orders of visited points and their errors, later ones weighing more.
#[derive(Debug, Clone)]
struct Mean {
    first: Vec<f64>,
    error: Vec<f64>,
}

/// Where a search at a wider density ended: its successor goes on from there.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    density: f64,
    choice: Vec<usize>,
    mean: Option<Mean>,
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
    mean: Option<Mean>,
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
    mean: Option<Mean>,
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
            self.take(&Proposal {
                kind: StepKind::OneShot,
                number,
                density: spec.density,
                from: &dense,
                to: &to,
                costs: None,
                curvature: None,
            })?;
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
                    self.take(&Proposal {
                        kind: StepKind::Tighten,
                        number: 0,
                        density: widest,
                        from: &dense,
                        to: &to,
                        costs: None,
                        curvature: None,
                    })?;
                }
                (to, budgets)
            }
        };
        for (number, budget) in budgets.into_iter().enumerate() {
            let local = self.visit(&current, number + 1)?;
            let costs = local.costs(spec.curvature);
            let next = self.solve(&costs, budget)?;
            self.take(&Proposal {
                kind: StepKind::Tighten,
                number: number + 1,
                density: budget,
                from: &current,
                to: &next,
                costs: Some(&costs),
                curvature: Some(spec.curvature),
            })?;
            current = next;
        }
        Ok(())
    }

    /// Steps at the density: each profiles the best plan and goes as far as measures better. What came true is believed more.
    fn rounds(&mut self) -> anyhow::Result<()> {
        let mut curvature = self.spec.curvature;
        for number in 0..self.spec.rounds {
            let current = self.best()?.choice.clone();
            // Tightening has taken parts up to its number of steps.
            let local = self.visit(&current, self.spec.steps + 1 + number)?;
            let mut tried = Vec::new();
            // What came true at once is believed more; what did not at all, less.
            let mut next_curvature = curvature * STIFFER;
            for again in 0..TRIES {
                let costs = local.costs(curvature);
                let next = self.solve(&costs, self.spec.density)?;
                if next == current {
                    if again == 0 {
                        next_curvature = curvature / STIFFER;
                    }
                    break;
                }
                if !tried.contains(&next) {
                    let better = self.take(&Proposal {
                        kind: StepKind::Round,
                        number,
                        density: self.spec.density,
                        from: &current,
                        to: &next,
                        costs: Some(&costs),
                        curvature: Some(curvature),
                    })?;
                    if better {
                        let first = again == 0;
                        next_curvature = if first {
                            curvature / STIFFER
                        } else {
                            curvature
                        };
                        break;
                    }
                    tried.push(next);
                }
                curvature *= STIFFER;
            }
            let (least, most) = (
                self.spec.curvature / LOOSEST,
                self.spec.curvature * STIFFEST,
            );
            curvature = next_curvature.clamp(least, most);
        }
        Ok(())
    }

    fn best(&self) -> anyhow::Result<&Step> {
        self.best.as_ref().context("no plan was measured")
    }

    /// What is known near a choice: the first order as a mean over visited points that moves towards this one.
    fn visit(&mut self, at: &[usize], part: usize) -> anyhow::Result<Local> {
        let mut local = self.landscape.model(at, part)?;
        let damping = self.spec.damping;
        if let Some(mean) = &self.mean {
            for (new, old) in local.first.iter_mut().zip(&mean.first) {
                *new = (damping * old + *new) / (1.0 + damping);
            }
            for (new, old) in local.error.iter_mut().zip(&mean.error) {
                *new = (damping * old).hypot(*new) / (1.0 + damping);
            }
        }
        self.mean = Some(Mean {
            first: local.first.clone(),
            error: local.error.clone(),
        });
        Ok(local)
    }

    fn solve(&self, costs: &[f64], density: f64) -> anyhow::Result<Vec<usize>> {
        let solve = || self.programme.solve(costs, density);
        let chosen = self.stages.time("solving", solve)?;
        Ok(chosen.rules().to_vec())
    }

    /// Measures a plan and keeps it if it meets the density and is the best so far.
    fn take(&mut self, plan: &Proposal<'_>) -> anyhow::Result<bool> {
        let measured = self.landscape.measure(plan.to)?;
        let within = plan.density <= self.spec.density;
        let better = self
            .best
            .as_ref()
            .is_none_or(|best| measured.loss < best.measured.loss);
        let step = Step {
            kind: plan.kind,
            number: plan.number,
            density: plan.density,
            curvature: plan.curvature,
            moved: self.programme.moved(plan.from, plan.to),
            predicted: plan.costs.map(|costs| change(costs, plan.from, plan.to)),
            measured,
            accepted: within && better,
            label: None,
            choice: plan.to.to_vec(),
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
