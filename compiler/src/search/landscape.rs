//! The model as a search in steps sees it: profiles of fresh samples at a plan, and measurements on held-out ones.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use moa_format::Plan;
use moa_lm::{Estimator, LossKind};
use moa_mask::MaskGrid;

use super::measure::{Bench, Measured};
use super::steps::{Landscape, Local, Step};
use super::{Job, interrupted};
use crate::calibration::{self, Wish};
use crate::cli::Scale;
use crate::effort::preset;
use crate::evaluate::Scorer;
use crate::hint::Told;
use crate::profile::{
    CostSpec, Curves, ProfileSpec, Programme, SolveSpec, TASK_NATS, costs, is_text, table,
};
use crate::{pipeline, plans};

/// What the weight of text is multiplied by in programmes at the dense model, the first of which begins the path: to second
/// order the two groups are not off by the same factor.
const TEXT_FACTORS: [f64; 3] = [1.0, 4.0, 0.25];

/// The model of a search in steps.
pub(super) struct Model<'a, 'b> {
    pub(super) job: &'a Job<'a>,
    /// The dense profile.
    pub(super) curves: &'a Curves,
    pub(super) spec: &'a SolveSpec,
    pub(super) programme: &'a Programme,
    pub(super) scorer: &'a dyn Scorer,
    pub(super) bench: &'a mut Bench<'b>,
    pub(super) cancel: &'a AtomicBool,
    /// Parts that searches at wider densities took.
    pub(super) parts_before: usize,
}

impl Model<'_, '_> {
    /// Profiles one part of the calibration at a plan, by its divergence from the dense model.
    fn profile(&self, at: &Plan, part: usize) -> anyhow::Result<Seen> {
        let job = self.job;
        let preset = preset(job.profile, job.context);
        let wish = Wish {
            after: job.after(self.parts_before + part),
            count: job.step_samples(),
            ..Wish::of(job.profile, &preset)
        };
        let samples = calibration::gather(job.opened, &wish, job.printer)?.samples;
        let grid: MaskGrid = plans::grid(job.profile.sink, job.profile.block)?;
        let spec = ProfileSpec {
            grid,
            loss: LossKind::KlToDense,
            at: Some(at.clone()),
            per_entry: false,
            blocks: None,
            // What is measured, as it is: at a temperature tokens that nobody would say outweigh the answer.
            temperature: 1.0,
            source_sha256: job.opened.source_sha256.clone(),
        };
        let curves = pipeline::profile_samples(job.opened, &samples, &spec, job.work, job.printer)?;
        if curves.lengths.is_empty() {
            return Err(Told::new("the calibration is empty", "give samples").into());
        }
        let mut targets: BTreeMap<String, f64> = BTreeMap::new();
        for sample in samples.values().flatten() {
            let of_kind = targets.entry(sample.kind.clone()).or_default();
            *of_kind += (sample.ids.len() - sample.response_start) as f64;
        }
        Ok(Seen { curves, targets })
    }

    /// Costs in nats with these weights of tasks and text, of all samples or of one kind alone.
    fn table(
        &self,
        curves: &Curves,
        estimator: Estimator,
        [task, text]: [f64; 2],
        kind: Option<&str>,
        constrained: &[u32],
    ) -> Vec<f64> {
        let weight = |group: &str| if is_text(group) { text } else { task };
        let of_group = |group: &str| if kind.is_none() { weight(group) } else { 0.0 };
        let groups = ["task", "text"].map(|group| (group.to_owned(), of_group(group)));
        let mut kinds = BTreeMap::from(groups);
        kinds.extend(kind.map(|kind| (kind.to_owned(), weight(kind))));
        let spec = CostSpec {
            estimator,
            scale: Scale::Nats,
            kinds,
            ..self.spec.cost.clone()
        };
        costs(curves, &spec, &self.programme.rules, constrained)
    }

    /// Weights of tasks and text in what is measured.
    fn measured(&self) -> [f64; 2] {
        [1.0, self.job.search.text_weight]
    }

    /// Standard errors of the first order: the square of an effect on the loss of one token is its variance. Tokens are many.
    fn errors(&self, seen: &Seen) -> Vec<f64> {
        let weights = self.measured();
        let mut variance = vec![0.0; self.programme.heads() * self.programme.rules.len()];
        for (kind, targets) in &seen.targets {
            let group = seen.targets.keys();
            let group = group.filter(|other| is_text(other) == is_text(kind));
            // The table has the weight of the kind once already, and half the squares.
            let weight = weights[usize::from(is_text(kind))];
            let share = 2.0 * weight / (group.count() as f64 * targets.max(1.0));
            let square = Estimator::JointSquare;
            let squares = self.table(&seen.curves, square, weights, Some(kind), &[]);
            for (sum, square) in variance.iter_mut().zip(squares) {
                *sum += share * square;
            }
        }
        let roots = variance.into_iter().map(|sum| sum.max(0.0).sqrt());
        roots.collect()
    }
}

/// The profile of samples at a plan.
struct Seen {
    curves: Curves,
    /// Target tokens of each kind.
    targets: BTreeMap<String, f64>,
}

impl Landscape for Model<'_, '_> {
    fn starts(&mut self) -> anyhow::Result<Vec<Vec<f64>>> {
        let user = &self.spec.cost;
        let swept = user.scale == Scale::Nats;
        let factors: &[f64] = if swept { &TEXT_FACTORS } else { &[1.0] };
        let tables = factors.iter().map(|factor| {
            let mut spec = user.clone();
            for (kind, weight) in &mut spec.kinds {
                if kind == "text" || is_text(kind) {
                    *weight *= factor;
                }
            }
            table(self.curves, &spec, self.programme)
        });
        Ok(tables.collect())
    }

    fn model(&mut self, at: &[usize], part: usize) -> anyhow::Result<Local> {
        let origin = moa_format::Provenance::default();
        let plan = self.programme.plan(at, "step", origin);
        let seen = self.profile(&plan, part)?;
        // Lengths that were not profiled have no curve at this plan: at another share of the text its own spans would not be free.
        let signed = Estimator::JointSigned;
        let first = self.table(&seen.curves, signed, self.measured(), None, &[]);
        let error = self.errors(&seen);
        // How far it is between two spans, as the many samples at the dense model see it: effects of nested windows point the
        // same way, so their sizes subtract.
        let weights = [TASK_NATS, self.job.search.text_weight];
        let square = Estimator::JointSquare;
        let dense = self.table(self.curves, square, weights, None, &self.programme.lengths);
        let size = |cost: f64| cost.max(0.0).sqrt();
        let second = dense
            .chunks_exact(self.programme.rules.len())
            .zip(at)
            .flat_map(|(costs, &own)| {
                let own = size(costs[own]);
                costs.iter().map(move |cost| (size(*cost) - own).powi(2))
            })
            .collect();
        Ok(Local {
            first,
            second,
            error,
        })
    }

    fn measure(&mut self, choice: &[usize]) -> anyhow::Result<Measured> {
        let programme = self.programme;
        let masks = |length| programme.masks(choice, length);
        let stages = &self.job.opened.stages;
        stages.time("measuring", || self.bench.measure(self.scorer, &masks))
    }

    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        if crate::interrupt::check(self.cancel).is_break() {
            return Err(interrupted().into());
        }
        self.job.trace(self.programme, self.spec, step)
    }
}
