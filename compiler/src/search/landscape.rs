//! The model as a search in steps sees it: profiles of fresh samples at a plan, and measurements on held-out ones.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use moa_format::Plan;
use moa_lm::LossKind;
use moa_mask::MaskGrid;

use super::measure::{Bench, Measured};
use super::steps::{Landscape, Step};
use super::{Job, interrupted};
use crate::calibrate::Sample;
use crate::calibration::{self, Wish};
use crate::cli::EstimatorChoice;
use crate::effort::preset;
use crate::evaluate::Scorer;
use crate::hint::Told;
use crate::profile::{
    CostSpec, Curves, ProfileSpec, Programme, Scale, SolveSpec, costs, is_text, table,
};
use crate::{pipeline, plans};

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
    /// Profiles one part of the calibration at a plan: tasks by cross entropy, text by its divergence from dense.
    fn profile(&self, at: &Plan, part: usize) -> anyhow::Result<Curves> {
        let job = self.job;
        let preset = preset(job.profile, job.context);
        let wish = Wish {
            after: job.after(self.parts_before + part),
            count: job.step_samples(),
            ..Wish::of(job.profile, &preset)
        };
        let gathered = calibration::gather(job.opened, &wish, job.printer)?;
        let grid: MaskGrid = plans::grid(job.profile.sink, job.profile.block)?;
        let mut all: Option<Curves> = None;
        for (texts, loss) in [(false, LossKind::CrossEntropy), (true, LossKind::KlToDense)] {
            let samples: BTreeMap<u32, Vec<Sample>> = gathered
                .samples
                .iter()
                .map(|(&length, list)| {
                    let of_group = list.iter().filter(|sample| is_text(&sample.kind) == texts);
                    (length, of_group.cloned().collect())
                })
                .filter(|(_, list): &(u32, Vec<Sample>)| !list.is_empty())
                .collect();
            if samples.is_empty() {
                continue;
            }
            let spec = ProfileSpec {
                grid,
                loss,
                at: Some(at.clone()),
                per_entry: job.search.step_estimator == EstimatorChoice::PerEntry,
                blocks: None,
                temperature: job.profile.temperature,
                source_sha256: job.opened.source_sha256.clone(),
            };
            let curves =
                pipeline::profile_samples(job.opened, &samples, &spec, job.work, job.printer)?;
            match &mut all {
                None => all = Some(curves),
                Some(all) => all.merge(curves),
            }
        }
        all.ok_or_else(|| Told::new("the calibration is empty", "give samples").into())
    }
}

impl Landscape for Model<'_, '_> {
    fn costs(&mut self, at: Option<&[usize]>, part: usize) -> anyhow::Result<Vec<f64>> {
        let Some(choice) = at else {
            return Ok(table(self.curves, &self.spec.cost, self.programme));
        };
        let plan = self
            .programme
            .plan(choice, "step", moa_format::Provenance::default());
        let curves = self.profile(&plan, part)?;
        // In nats, weighed as the measure weighs: the table predicts changes of what is accepted by.
        let mut spec = CostSpec {
            scale: Scale::Nats,
            ..self.spec.cost.clone()
        };
        spec.estimator = self.job.search.step_estimator.into();
        spec.kinds.entry("text".into()).or_insert(1.0);
        for (kind, weight) in &mut spec.kinds {
            if is_text(kind) {
                *weight *= self.job.search.text_weight;
            }
        }
        Ok(costs(
            &curves,
            &spec,
            &self.programme.rules,
            &self.programme.lengths,
        ))
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
