//! Re-linearisation: tighten the budget in steps, and profile the model as masked so far before each.
//!
//! Influence is first order at the point where it was measured, and a quarter of the cache is far from the dense model.
//! The joint formula holds at any plan, so each step asks again: what would every other window of every head change,
//! here? Three guards keep the programme from jumping out of the region where the answer holds: earlier points keep part
//! of their say (damping), a step moves a bounded share of the cache (trust region), and at the target density a plan is
//! taken only if it measures better on held-out samples than the best so far. The one-shot plan competes as well, so
//! that the search never ends with a plan that measures worse than that.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::measure::Measured;
use crate::profile::Programme;
use crate::stages::Stages;

/// Below this share of the cache a further step is not worth its profile.
const LEAST_RADIUS: f64 = 0.005;
/// Plans that one profile at the density may propose, each half as far away as the one before.
const TRIES: usize = 3;

/// How the search goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepSpec {
    pub(crate) density: f64,
    pub(crate) steps: usize,
    pub(crate) rounds: usize,
    pub(crate) damping: f64,
    pub(crate) trust: f64,
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
    /// Share of the cache that the step might move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) radius: Option<f64>,
    /// Share of the cache that it moved.
    pub(crate) moved: f64,
    /// Change of the loss that the newest linear model predicted, in nats; only between masked plans.
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

/// The model, as a search sees it.
pub(crate) trait Landscape {
    /// Costs of the programme's rules at a choice, or at the dense model. `part` counts: every call gets samples that no
    /// other part got.
    fn costs(&mut self, at: Option<&[usize]>, part: usize) -> anyhow::Result<Vec<f64>>;

    /// What a choice costs on held-out samples.
    fn measure(&mut self, choice: &[usize]) -> anyhow::Result<Measured>;

    /// Told of every plan that was measured.
    fn step(&mut self, step: &Step) -> anyhow::Result<()>;
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
        let first = self.landscape.costs(None, 0)?;
        let one_shot = self.solve(&first, spec.density)?;
        let (mut current, mut last, budgets) = match self.start {
            Some(start) => (
                start.choice.clone(),
                start.density,
                budgets_below(start.density, spec.density, spec.steps),
            ),
            None => {
                let mut budgets = budgets(spec.density, spec.steps);
                let widest = budgets.remove(0);
                (self.solve(&first, widest)?, widest, budgets)
            }
        };
        if !budgets.is_empty() {
            let density = spec.density;
            self.take(StepKind::OneShot, 0, density, None, &dense, &one_shot, None)?;
        }
        if self.start.is_none() {
            self.take(StepKind::Tighten, 0, last, None, &dense, &current, None)?;
        }
        for (number, budget) in budgets.into_iter().enumerate() {
            let newest = self.visit(&current, number + 1)?;
            let radius = spec.trust + last - budget;
            let next = self.near(budget, &current, radius)?;
            let predicted = self.change(&newest, &current, &next);
            self.take(
                StepKind::Tighten,
                number + 1,
                budget,
                Some(radius),
                &current,
                &next,
                Some(predicted),
            )?;
            (current, last) = (next, budget);
        }
        Ok(())
    }

    /// Steps at the density: each profiles the best plan and goes as far as measures better, half as far after every
    /// failure. A linear model holds near where it was made; how near, only a measurement says.
    fn rounds(&mut self) -> anyhow::Result<()> {
        let mut radius = self.spec.trust;
        for number in 0..self.spec.rounds {
            let current = self.best()?.choice.clone();
            // Tightening has taken parts up to its number of steps.
            let newest = self.visit(&current, self.spec.steps + 1 + number)?;
            for _ in 0..TRIES {
                if radius < LEAST_RADIUS {
                    break;
                }
                let next = self.near(self.spec.density, &current, radius)?;
                let predicted = self.change(&newest, &current, &next);
                let accepted = next != current
                    && self.take(
                        StepKind::Round,
                        number,
                        self.spec.density,
                        Some(radius),
                        &current,
                        &next,
                        Some(predicted),
                    )?;
                if accepted {
                    break;
                }
                radius /= 2.0;
            }
            // Other samples may know a way that these did not.
            radius = (radius * 2.0).max(LEAST_RADIUS).min(self.spec.trust);
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
                let predicted = self.change(&costs, &current, &next);
                any = self.take(
                    StepKind::Exchange,
                    tried - 1,
                    self.spec.density,
                    None,
                    &current,
                    &next,
                    Some(predicted),
                )?;
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

    /// Profiles at a choice: the mean over visited points moves towards it.
    fn visit(&mut self, at: &[usize], part: usize) -> anyhow::Result<Vec<f64>> {
        let newest = self.landscape.costs(Some(at), part)?;
        let damping = self.spec.damping;
        let mean = match self.mean.take() {
            None => newest.clone(),
            Some(mean) => mean
                .iter()
                .zip(&newest)
                .map(|(old, new)| (damping * old + new) / (1.0 + damping))
                .collect(),
        };
        self.mean = Some(mean);
        Ok(newest)
    }

    fn near(&self, density: f64, from: &[usize], radius: f64) -> anyhow::Result<Vec<usize>> {
        let costs = self.mean.as_ref().context("no plan was profiled")?;
        let near = || self.programme.near(costs, density, from, radius);
        let chosen = self.stages.time("solving", near)?;
        Ok(chosen.rules().to_vec())
    }

    fn solve(&self, costs: &[f64], density: f64) -> anyhow::Result<Vec<usize>> {
        let solve = || self.programme.solve(costs, density);
        let chosen = self.stages.time("solving", solve)?;
        Ok(chosen.rules().to_vec())
    }

    /// What a cost table says of a change of plan.
    fn change(&self, costs: &[f64], from: &[usize], to: &[usize]) -> f64 {
        let rules = self.programme.rules.len();
        costs
            .chunks_exact(rules)
            .zip(from.iter().zip(to))
            .map(|(costs, (&from, &to))| costs[to] - costs[from])
            .sum()
    }

    /// Measures a plan and keeps it if it meets the density and is the best so far.
    fn take(
        &mut self,
        kind: StepKind,
        number: usize,
        density: f64,
        radius: Option<f64>,
        from: &[usize],
        to: &[usize],
        predicted: Option<f64>,
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
            radius,
            moved: self.programme.moved(from, to),
            predicted,
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
mod tests {
    use std::collections::BTreeMap;

    use moa_mask::MaskGrid;

    use super::*;

    /// What each head loses by seeing nothing.
    const NEEDS: [f64; 8] = [0.2, 0.3, 1.5, 0.4, 0.9, 0.1, 0.6, 0.5];

    /// A loss that no linear model at the dense point sees: the first pair of heads helps only if both are narrow or both
    /// wide, and each further head has a need of its own.
    struct Valley<'a> {
        programme: &'a Programme,
        steps: usize,
        costs: Vec<Option<Vec<usize>>>,
    }

    impl Valley<'_> {
        fn share(&self, rule: usize) -> f64 {
            f64::from(self.programme.rules[rule].span(1024, self.programme.grid)) / 1024.0
        }

        fn loss(&self, choice: &[usize]) -> f64 {
            let own: f64 = choice
                .iter()
                .zip(NEEDS)
                .map(|(&rule, need)| need * (1.0 - self.share(rule)).powi(2))
                .sum();
            let (a, b) = (self.share(choice[0]), self.share(choice[1]));
            own + 2.0 * (1.0 - a) * (1.0 - b)
        }
    }

    impl Landscape for Valley<'_> {
        fn costs(&mut self, at: Option<&[usize]>, _: usize) -> anyhow::Result<Vec<f64>> {
            self.costs.push(at.map(<[usize]>::to_vec));
            let dense = self.programme.dense();
            let at = at.unwrap_or(&dense);
            let rules = self.programme.rules.len();
            // The exact slope in each head's share, applied to every rule.
            let mut table = vec![0.0; 8 * rules];
            for head in 0..8 {
                for rule in 0..rules {
                    let own = self.share(at[head]);
                    let mut slope = -2.0 * NEEDS[head] * (1.0 - own);
                    if head < 2 {
                        slope -= 2.0 * (1.0 - self.share(at[1 - head]));
                    }
                    table[head * rules + rule] = slope * (self.share(rule) - own);
                }
            }
            Ok(table)
        }

        fn measure(&mut self, choice: &[usize]) -> anyhow::Result<Measured> {
            Ok(Measured {
                task: Some(self.loss(choice)),
                text: None,
                loss: self.loss(choice),
                parts: BTreeMap::new(),
            })
        }

        fn step(&mut self, _: &Step) -> anyhow::Result<()> {
            self.steps += 1;
            Ok(())
        }
    }

    #[test]
    fn budgets_fall_in_equal_ratios_from_the_square_root() {
        let round = |list: Vec<f64>| -> Vec<f64> {
            list.iter().map(|b| (b * 1000.0).round() / 1000.0).collect()
        };
        assert_eq!(round(budgets(0.25, 3)), [0.5, 0.354, 0.25]);
        assert_eq!(budgets(0.5, 1), [0.5]);
        assert_eq!(round(budgets(0.25, 2)), [0.5, 0.25]);
    }

    #[test]
    fn a_narrower_density_goes_on_where_the_wider_one_ended() {
        let round = |list: Vec<f64>| -> Vec<f64> {
            list.iter().map(|b| (b * 1000.0).round() / 1000.0).collect()
        };
        assert_eq!(round(budgets_below(0.5, 0.25, 2)), [0.354, 0.25]);
        assert_eq!(budgets_below(0.5, 0.25, 0), [0.25]);
        let grid = MaskGrid::new(16, 16).unwrap();
        let programme = Programme::new((4, 2), grid, &[1024], 1024, None);
        let spec = StepSpec {
            density: 0.5,
            steps: 2,
            rounds: 3,
            damping: 0.5,
            trust: 0.15,
            exchanges: 0,
        };
        let mut valley = Valley {
            programme: &programme,
            steps: 0,
            costs: Vec::new(),
        };
        let stages = Stages::default();
        let wide = search(&programme, &spec, None, &mut valley, &stages).unwrap();
        let narrow = StepSpec {
            density: 0.3,
            ..spec
        };
        valley.costs.clear();
        let start = wide.start();
        let found = search(&programme, &narrow, Some(&start), &mut valley, &stages).unwrap();
        assert_eq!(valley.costs[1], Some(wide.best.choice.clone()));
        let kinds: Vec<StepKind> = found.steps.iter().map(|step| step.kind).collect();
        assert_eq!(
            kinds[..3],
            [StepKind::OneShot, StepKind::Tighten, StepKind::Tighten]
        );
        assert!(found.best.measured.loss <= found.steps[0].measured.loss);
        for density in programme.densities(&found.best.choice).values() {
            assert!(*density <= 0.3 + 1e-9);
        }
        assert!(stages.secs()["solving"] > 0.0);
    }

    #[test]
    fn steps_find_what_one_programme_does_not() {
        let grid = MaskGrid::new(16, 16).unwrap();
        let programme = Programme::new((4, 2), grid, &[1024], 1024, None);
        let run = |spec: &StepSpec| {
            let mut valley = Valley {
                programme: &programme,
                steps: 0,
                costs: Vec::new(),
            };
            let found = search(&programme, spec, None, &mut valley, &Stages::default()).unwrap();
            assert_eq!(valley.steps, found.steps.len());
            (found, valley.costs)
        };
        let spec = StepSpec {
            density: 0.4,
            steps: 3,
            rounds: 4,
            damping: 0.5,
            trust: 0.15,
            exchanges: 6,
        };
        let (found, visited) = run(&spec);
        let loss = |kind: StepKind| {
            let of_kind = found.steps.iter().filter(|step| step.kind == kind);
            of_kind
                .map(|step| step.measured.loss)
                .fold(f64::INFINITY, f64::min)
        };
        assert!(
            found.best.measured.loss < 0.9 * loss(StepKind::OneShot),
            "{found:?}"
        );
        let least = found
            .steps
            .iter()
            .filter(|step| step.density <= spec.density)
            .map(|step| step.measured.loss)
            .fold(f64::INFINITY, f64::min);
        assert_eq!(found.best.measured.loss, least, "the best is kept");
        for density in programme.densities(&found.best.choice).values() {
            assert!(*density <= spec.density + 1e-9);
        }
        for step in &found.steps {
            if let Some(radius) = step.radius {
                assert!(step.moved <= radius + 1e-9, "{step:?}");
            }
        }
        assert!(visited[0].is_none() && visited[1..].iter().all(Option::is_some));
        let (again, _) = run(&spec);
        assert_eq!(again.steps, found.steps, "deterministic");

        let one = StepSpec {
            steps: 1,
            rounds: 0,
            exchanges: 0,
            ..spec
        };
        let (one, visited) = run(&one);
        assert_eq!((one.steps.len(), visited.len()), (1, 1));
        assert_eq!(one.best.measured.loss, loss(StepKind::OneShot));
    }
}
