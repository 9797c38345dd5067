//! Finding a plan by measuring plans: in steps that re-linearize, or on a front of weights.
//!
//! ```text
//! calibration --part 0, 1, ..--> profiles at the plan so far --> programme --> plan --+
//!      |                                   ^                                          |
//!      +--held out--> bench: what a plan costs, measured <----------------------------+
//! ```
//!
//! Everything that took time waits in the work folder: finished samples of profiles and single measurements. The rest is
//! deterministic, so a search that was interrupted is simply run again and goes through what it had.

mod front;
mod landscape;
mod measure;
mod steps;
mod study;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use moa_format::Plan;
use serde::Serialize;

use crate::calibration::{self, Wish};
use crate::cli::{ProfileArgs, SearchArgs, SearchChoice, SolveArgs};
use crate::effort::preset;
use crate::evaluate::{Scorer, scorer_of};
use crate::files::{FileError, parent};
use crate::hint::Told;
use crate::interrupt;
use crate::opened::Opened;
use crate::pipeline::{self, Wanted};
use crate::printer::Printer;
use crate::profile::{
    Chosen, Curves, Programme, SolveReport, SolveSpec, plan_name, provenance, report,
};

pub(crate) use measure::{Bench, Measured};
pub(crate) use steps::Step;
#[cfg(test)]
pub(crate) use steps::StepKind;
pub(crate) use study::{Ranked, StudySpec, is_group, study};

pub(crate) use front::undominated;

use landscape::Model;
use steps::{Start, StepSpec};

/// A plan that was searched for, and how.
#[derive(Debug, Serialize)]
pub(crate) struct Searched {
    #[serde(skip)]
    pub(crate) plan: Plan,
    pub(crate) plan_name: String,
    pub(crate) plan_hash: String,
    pub(crate) density: f64,
    pub(crate) report: SolveReport,
    /// What the plan measures on held-out samples; absent where nothing was measured.
    pub(crate) measured: Option<Measured>,
    /// Labels of the members of a front that no other beats in both task and text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) front: Vec<String>,
    pub(crate) steps: Vec<Step>,
}

/// What a search is asked for.
pub(crate) struct Job<'a> {
    pub(crate) opened: &'a Opened,
    pub(crate) profile: &'a ProfileArgs,
    pub(crate) solve: &'a SolveArgs,
    pub(crate) search: &'a SearchArgs,
    pub(crate) how: SearchChoice,
    pub(crate) context: u32,
    pub(crate) work: &'a Path,
    pub(crate) printer: &'a Printer,
}

/// Finds one plan for every density that is asked for, in that order.
pub(crate) fn run(job: &Job<'_>) -> anyhow::Result<Vec<Searched>> {
    job.check()?;
    let densities = &job.solve.density;
    let specs: Vec<SolveSpec> = densities
        .iter()
        .map(|&density| pipeline::solve_spec(job.solve, density, job.context, job.profile.seed))
        .collect();
    for spec in &specs {
        // A wish that no profile can fulfill is refused before minutes are spent on one.
        pipeline::check_budget(job.profile, job.opened.source.config(), spec)?;
    }
    // The profile of the dense model serves every density.
    let curves = pipeline::profile(
        job.opened,
        job.profile,
        job.context,
        Wanted::for_estimators(&[job.solve.estimator]),
        job.work,
        job.printer,
    )?;
    if job.how == SearchChoice::OneShot {
        return specs
            .iter()
            .map(|spec| job.one_shot(&curves, spec))
            .collect();
    }
    let cancel = interrupt::flag();
    let lm = job.opened.lm(job.printer)?;
    let scorer = scorer_of(lm, &job.opened.source, cancel);
    let mut bench = job.bench(&curves)?;
    if job.how == SearchChoice::Front {
        return specs
            .iter()
            .map(|spec| job.front(&curves, spec, &*scorer, &mut bench))
            .collect();
    }
    job.path(&curves, &specs, &*scorer, &mut bench, cancel)
}

impl Job<'_> {
    fn check(&self) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        for &density in &self.solve.density {
            if !seen.insert(plan_name(density)) {
                return Err(Told::new(
                    format!("--density has {density} twice"),
                    "name each density once",
                )
                .into());
            }
        }
        let args = self.search;
        for (what, got, good) in [
            (
                "--damping",
                args.damping,
                args.damping >= 0.0 && args.damping.is_finite(),
            ),
            (
                "--curvature",
                args.curvature,
                args.curvature >= 0.0 && args.curvature.is_finite(),
            ),
            (
                "--text-weight",
                args.text_weight,
                args.text_weight >= 0.0 && args.text_weight.is_finite(),
            ),
        ] {
            if !good {
                return Err(Told::new(
                    format!("{what} is {got}, expected 0 or more"),
                    format!("leave {what} out for its default"),
                )
                .into());
            }
        }
        if self.how == SearchChoice::Steps && args.steps == Some(0) {
            return Err(Told::new("--steps is 0, expected at least 1", "use --steps 3").into());
        }
        Ok(())
    }

    fn programme(&self, curves: &Curves, spec: &SolveSpec) -> Programme {
        let profiled: Vec<u32> = curves.lengths.keys().copied().collect();
        spec.programme((curves.layers, curves.kv_heads), curves.grid, &profiled)
    }

    fn one_shot(&self, curves: &Curves, spec: &SolveSpec) -> anyhow::Result<Searched> {
        let solve = || crate::profile::solve(curves, spec);
        let (plan, report) = self.opened.stages.time("solving", solve)?;
        Ok(Searched {
            plan_name: plan.name.clone(),
            plan_hash: plan.hash(),
            plan,
            density: spec.density,
            report,
            measured: None,
            front: Vec::new(),
            steps: Vec::new(),
        })
    }

    /// Held-out samples: none that a profile of this search takes.
    fn bench(&self, curves: &Curves) -> anyhow::Result<Bench<'_>> {
        let preset = preset(self.profile, self.context);
        let profiled: Vec<u32> = curves.lengths.keys().copied().collect();
        let lengths = if self.search.held_out_lengths.is_empty() {
            with_between(&profiled)
        } else {
            self.search.held_out_lengths.clone()
        };
        let wish = Wish {
            lengths,
            count: self.search.held_out.unwrap_or(preset.step_samples),
            after: self.after(self.parts()),
            ..Wish::of(self.profile, &preset)
        };
        let gathered = calibration::gather(self.opened, &wish, self.printer)?;
        let log = self.work.join("measured.jsonl");
        Bench::open(
            gathered.samples,
            self.opened.source_sha256.clone(),
            self.search.text_weight,
            Some(&log),
            self.printer,
            interrupt::flag(),
        )
    }

    /// Tightening steps and rounds.
    fn counts(&self) -> (usize, usize) {
        let preset = preset(self.profile, self.context);
        (
            self.search.steps.unwrap_or(preset.steps),
            self.search.rounds.unwrap_or(preset.rounds),
        )
    }

    /// Sets of samples that profiles may take: one at the dense model, and one for each step.
    fn parts(&self) -> usize {
        match self.how {
            SearchChoice::Steps => {
                let (steps, rounds) = self.counts();
                1 + (steps + rounds) * self.solve.density.len()
            }
            _ => 1,
        }
    }

    /// Samples of each kind that a step profiles.
    fn step_samples(&self) -> usize {
        let preset = preset(self.profile, self.context);
        self.search.step_samples.unwrap_or(preset.step_samples)
    }

    /// Samples of each kind that the first `parts` sets take.
    fn after(&self, parts: usize) -> usize {
        match parts {
            0 => 0,
            _ => preset(self.profile, self.context).samples + (parts - 1) * self.step_samples(),
        }
    }

    /// One search after the other, from the widest density to the narrowest, each from where the one before ended.
    fn path(
        &self,
        curves: &Curves,
        specs: &[SolveSpec],
        scorer: &dyn Scorer,
        bench: &mut Bench<'_>,
        cancel: &AtomicBool,
    ) -> anyhow::Result<Vec<Searched>> {
        let (steps, rounds) = self.counts();
        let mut order: Vec<usize> = (0..specs.len()).collect();
        order.sort_by(|&a, &b| specs[b].density.total_cmp(&specs[a].density));
        let mut found: BTreeMap<usize, Searched> = BTreeMap::new();
        let mut start: Option<Start> = None;
        for (done, &at) in order.iter().enumerate() {
            let spec = &specs[at];
            let programme = self.programme(curves, spec);
            let mut model = Model {
                job: self,
                curves,
                spec,
                programme: &programme,
                scorer,
                bench: &mut *bench,
                cancel,
                parts_before: done * (steps + rounds),
            };
            let wanted = StepSpec {
                density: spec.density,
                steps,
                rounds,
                damping: self.search.damping,
                curvature: self.search.curvature,
            };
            let stages = &self.opened.stages;
            let one = steps::search(&programme, &wanted, start.as_ref(), &mut model, stages)?;
            let chosen = as_chosen(&one.best);
            let searched = self.searched(
                curves,
                spec,
                &programme,
                &chosen,
                one.best.clone(),
                one.steps.clone(),
            )?;
            start = Some(one.start());
            found.insert(at, searched);
        }
        Ok(found.into_values().collect())
    }

    fn searched(
        &self,
        curves: &Curves,
        spec: &SolveSpec,
        programme: &Programme,
        chosen: &Chosen,
        best: Step,
        steps: Vec<Step>,
    ) -> anyhow::Result<Searched> {
        let mut origin = provenance(curves, spec, programme, chosen);
        let mut note = |key: &str, value: String| origin.notes.insert(key.to_owned(), value);
        let number =
            |value: Option<f64>| value.map_or("none".into(), |value| format!("{value:.6}"));
        note("search", format!("{:?}", self.how).to_lowercase());
        note("measured_task", number(best.measured.task));
        note("measured_text", number(best.measured.text));
        if self.how == SearchChoice::Steps {
            // No programme proved anything about this plan.
            origin.notes.remove("gap");
            origin.estimator = Some(format!("{}, then steps", spec.cost.estimator.name()));
        }
        let points: Vec<(f64, f64)> = steps.iter().map(|step| step.measured.point()).collect();
        let front = if self.how == SearchChoice::Front {
            undominated(&points)
                .into_iter()
                .filter_map(|at| steps[at].label.clone())
                .collect()
        } else {
            Vec::new()
        };
        let plan = programme.plan(chosen.rules(), &plan_name(spec.density), origin);
        Ok(Searched {
            plan_name: plan.name.clone(),
            plan_hash: plan.hash(),
            plan,
            density: spec.density,
            report: report(programme, chosen),
            measured: Some(best.measured),
            front,
            steps,
        })
    }

    /// Says what a step was, and writes it to the trace.
    fn trace(&self, programme: &Programme, spec: &SolveSpec, step: &Step) -> anyhow::Result<()> {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
        self.printer.say(format!(
            "density {:.4} {}: moved {:.3}, task {}, text {}, loss {:.4}{}",
            step.density,
            step.name(),
            step.moved,
            number(step.measured.task),
            number(step.measured.text),
            step.measured.loss,
            if step.accepted { ", best so far" } else { "" }
        ));
        let Some(path) = &self.search.trace else {
            return Ok(());
        };
        let spans: BTreeMap<u32, Vec<u32>> = programme
            .lengths
            .iter()
            .map(|&length| {
                let span = |&rule: &usize| programme.rules[rule].span(length, programme.grid);
                (length, step.choice.iter().map(span).collect())
            })
            .collect();
        let mut line = serde_json::to_value(step)?;
        line["target"] = spec.density.into();
        line["spans"] = serde_json::to_value(spans)?;
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(parent(path))?;
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)?;
            writeln!(file, "{line}")
        };
        write().map_err(|source| FileError::new("write", path, source))?;
        Ok(())
    }
}

/// Profiled lengths, and one half-way between each two, in whole blocks of 64: plans are also measured where no curve was.
fn with_between(profiled: &[u32]) -> Vec<u32> {
    let mut lengths = profiled.to_vec();
    lengths.extend(
        profiled
            .windows(2)
            .map(|pair| u32::midpoint(pair[0], pair[1]) / 64 * 64),
    );
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// What is said after Ctrl-C.
fn interrupted() -> Told {
    Told::new(
        "interrupted",
        "finished work is kept; run the same command again to go on",
    )
}

/// A choice that was measured, whichever solve proposed it: what it costs is its measured loss.
fn as_chosen(step: &Step) -> Chosen {
    Chosen {
        status: "measured",
        solution: moa_solve::Solution {
            rule_of_head: step.choice.clone(),
            objective: step.measured.loss,
            bound: step.measured.loss,
            gap: 0.0,
            secs: 0.0,
            solver: "steps",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_also_measured_between_profiles() {
        assert_eq!(
            with_between(&[1024, 2048, 4096]),
            [1024, 1536, 2048, 3072, 4096]
        );
        assert_eq!(with_between(&[1000]), [1000]);
    }
}
