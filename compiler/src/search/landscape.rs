//! The model as a search in steps sees it: profiles of fresh samples at a plan, and measurements on held-out ones.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use moa_format::Plan;
use moa_lm::{Estimator, LossKind};
use moa_mask::MaskGrid;

use super::measure::{Bench, Measured};
use super::steps::{Landscape, Local, Step};
use super::{Job, interrupted};
use crate::calibrate::Sample;
use crate::calibration::{self, Wish};
use crate::effort::preset;
use crate::evaluate::Scorer;
use crate::hint::Told;
use crate::profile::{
    CostSpec, Curves, ProfileSpec, Programme, Scale, SolveSpec, costs, is_text, table,
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
    /// Profiles one part of the calibration at a plan: every sample by the cross entropy of what it says, and texts by their
    /// divergence from dense as well.
    fn profile(&self, at: &Plan, part: usize) -> anyhow::Result<([Curves; 2], [f64; 2])> {
        let job = self.job;
        let preset = preset(job.profile, job.context);
        let wish = Wish {
            after: job.after(self.parts_before + part),
            count: job.step_samples(),
            ..Wish::of(job.profile, &preset)
        };
        let gathered = calibration::gather(job.opened, &wish, job.printer)?;
        let grid: MaskGrid = plans::grid(job.profile.sink, job.profile.block)?;
        let run = |loss, wanted: &dyn Fn(&Sample) -> bool| {
            let samples = gathered.samples.iter().map(|(&length, list)| {
                let of_group = list.iter().filter(|sample| wanted(sample));
                (length, of_group.cloned().collect())
            });
            let samples: BTreeMap<u32, Vec<Sample>> = samples
                .filter(|(_, list): &(u32, Vec<Sample>)| !list.is_empty())
                .collect();
            let spec = ProfileSpec {
                grid,
                loss,
                at: Some(at.clone()),
                per_entry: false,
                blocks: None,
                temperature: job.profile.temperature,
                source_sha256: job.opened.source_sha256.clone(),
            };
            pipeline::profile_samples(job.opened, &samples, &spec, job.work, job.printer)
        };
        let said = run(LossKind::CrossEntropy, &|_| true)?;
        if said.lengths.is_empty() {
            return Err(Told::new("the calibration is empty", "give samples").into());
        }
        let apart = run(LossKind::KlToDense, &|sample| is_text(&sample.kind))?;
        // Target tokens of tasks and of texts.
        let mut targets = [0.0; 2];
        for sample in gathered.samples.values().flatten() {
            let of_group = &mut targets[usize::from(is_text(&sample.kind))];
            *of_group += (sample.ids.len() - sample.response_start) as f64;
        }
        Ok(([said, apart], targets))
    }

    /// A table in nats, weighed as the measure weighs, so that it predicts changes of what is accepted by; from one group of
    /// samples alone where the other's weight is 0.
    fn table(
        &self,
        curves: &Curves,
        estimator: Estimator,
        groups: [f64; 2],
        constrained: &[u32],
    ) -> Vec<f64> {
        let mut spec = CostSpec {
            estimator,
            scale: Scale::Nats,
            ..self.spec.cost.clone()
        };
        let text = groups[1] * self.job.search.text_weight;
        spec.kinds = BTreeMap::from([("task".into(), groups[0]), ("text".into(), text)]);
        costs(curves, &spec, &self.programme.rules, constrained)
    }
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
        let ([said, apart], targets) = self.profile(&plan, part)?;
        let signed = Estimator::JointSigned;
        // Lengths that were not profiled have no curve at this plan: at another share of the text its own spans would not be free.
        let seen = |curves: &Curves, estimator, groups| self.table(curves, estimator, groups, &[]);
        let mut first = seen(&said, signed, [1.0, 0.0]);
        for (sum, cost) in first.iter_mut().zip(seen(&apart, signed, [0.0, 1.0])) {
            *sum += cost;
        }
        // The square of an effect on the loss of one token is both: its variance, and twice the divergence. Tokens are many.
        let square = Estimator::JointSquare;
        let of_tasks = seen(&said, square, [1.0, 0.0]);
        let of_texts = seen(&said, square, [0.0, 1.0]);
        let weight = self.job.search.text_weight;
        let pairs = || of_tasks.iter().zip(&of_texts);
        let error = pairs().map(|(task, text)| {
            let variance = task / targets[0].max(1.0) + weight * text / targets[1].max(1.0);
            (2.0 * variance).max(0.0).sqrt()
        });
        let error = error.collect();
        let here: Vec<f64> = pairs().map(|(task, text)| task + text).collect();
        // What the many samples at the dense model say of the way between two spans: effects of nested windows point the same
        // way, so their sizes subtract.
        let dense = self.table(self.curves, square, [1.0, 1.0], &self.programme.lengths);
        let rules = self.programme.rules.len();
        let second = here
            .chunks_exact(rules)
            .zip(dense.chunks_exact(rules))
            .zip(at)
            .flat_map(|((here, dense), &own)| {
                let size = |cost: f64| cost.max(0.0).sqrt();
                let own = size(dense[own]);
                let pairs = here.iter().zip(dense);
                pairs.map(move |(here, dense)| f64::midpoint(*here, (size(*dense) - own).powi(2)))
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
