//! How well estimators order plans: random plans at one density, measured, against what each estimator predicted.
//!
//! All plans keep the same share of the cache, so that density alone explains nothing. They differ in how unevenly it is
//! spread over heads. A rank correlation of 1 means that an estimator would have sorted them right.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use moa_lm::Estimator;
use moa_mask::density::kv_density;
use moa_mask::{HeadRule, ModelMasks};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::measure::{Bench, Measured};
use crate::calibrate::seeded;
use crate::calibration::{self, Wish};
use crate::cli::Scale;
use crate::evaluate::Scorer;
use crate::evaluate::statistics::{Interval, bootstrap, kendall, spearman};
use crate::files::{sibling, write_atomic};
use crate::interrupt;
use crate::opened::Opened;
use crate::plans::masks_of;
use crate::printer::Printer;
use crate::profile::{CostSpec, Curves, costs, is_text};

/// Spans are whole parts of a text.
const PARTS: u32 = 64;
/// How unevenly plans spread the cache: the deviation of the logarithm of a head's share.
const SPREADS: [f64; 4] = [0.3, 0.7, 1.2, 2.0];

/// What is studied.
pub(crate) struct StudySpec<'a> {
    pub(crate) density: f64,
    pub(crate) plans: usize,
    pub(crate) calibration: Option<&'a Path>,
    pub(crate) samples: usize,
    pub(crate) seed: u64,
    pub(crate) trials_out: Option<&'a Path>,
}

/// One random plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drawn {
    pub(crate) number: usize,
    pub(crate) spread: f64,
    /// kv_density at the longest profiled length.
    pub(crate) kv_density: f64,
    /// Part of the text that each head sees, as sixty-fourths.
    pub(crate) parts: Vec<u32>,
    pub(crate) measured: Measured,
    /// Predicted cost by estimator and group: `joint-abs.task`.
    pub(crate) predicted: BTreeMap<String, f64>,
}

/// How one estimator ordered the plans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ranked {
    pub(crate) estimator: String,
    pub(crate) monotone: bool,
    /// `task`, `text`, or a kind of sample at a length.
    pub(crate) of: String,
    pub(crate) spearman: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<Interval>,
    pub(crate) kendall: f64,
}

/// Draws plans, measures them and ranks the estimators.
pub(crate) fn study(
    opened: &Opened,
    curves: &Curves,
    scorer: &dyn Scorer,
    spec: &StudySpec<'_>,
    printer: &Printer,
) -> anyhow::Result<(Vec<Drawn>, Vec<Ranked>)> {
    let lengths: Vec<u32> = curves.lengths.keys().copied().collect();
    let longest = lengths.last().copied().unwrap_or(1);
    let profiled = curves
        .lengths
        .values()
        .flat_map(|length| length.kinds.values().map(|kind| kind.samples))
        .max()
        .unwrap_or(0);
    let wish = Wish {
        file: spec.calibration,
        text: None,
        lengths: lengths.clone(),
        count: spec.samples,
        seed: spec.seed,
        after: profiled as usize,
        all_targets: false,
    };
    let samples = calibration::gather(opened, &wish, printer)?.samples;
    let log = spec.trials_out.map(|path| sibling(path, "measured.jsonl"));
    let mut bench = Bench::open(
        samples,
        opened.source_sha256.clone(),
        1.0,
        log.as_deref(),
        printer,
        interrupt::flag(),
    )?;
    let predictors = predictors(curves);
    let heads = curves.layers * curves.kv_heads;
    // No head is asked to see less than the smallest span, which it would see all the same.
    let shortest = lengths.first().copied().unwrap_or(1);
    let least = (curves.grid.min_span() * PARTS)
        .div_ceil(shortest)
        .clamp(1, PARTS);
    let mut drawn = Vec::with_capacity(spec.plans);
    let mut lines = Vec::new();
    for number in 0..spec.plans {
        let spread = SPREADS[number % SPREADS.len()];
        let parts = draw((heads, least), spec.density, spread, spec.seed, number);
        let masks = |length: u32| -> anyhow::Result<ModelMasks> {
            let rules: Vec<HeadRule> = parts.iter().map(|&part| rule(part)).collect();
            masks_of(&rules, curves.kv_heads, length, curves.grid)
        };
        let measured = bench.measure(scorer, &masks)?;
        let predicted = predictors
            .iter()
            .map(|predictor| (predictor.name.clone(), predictor.cost(&parts)))
            .collect();
        printer.say(format!(
            "plan {} of {}: task {:?}, text {:?}",
            number + 1,
            spec.plans,
            measured.task,
            measured.text
        ));
        let one = Drawn {
            number,
            spread,
            kv_density: kv_density(masks(longest)?.iter(), longest),
            parts,
            measured,
            predicted,
        };
        writeln!(lines, "{}", serde_json::to_string(&one)?)?;
        drawn.push(one);
    }
    if let Some(path) = spec.trials_out {
        write_atomic(path, &lines)?;
    }
    let ranked = rank(&drawn, &predictors, spec.seed);
    Ok((drawn, ranked))
}

/// The rule of a part of the text.
fn rule(part: u32) -> HeadRule {
    HeadRule::Elastic {
        alpha: 0.0,
        beta: f64::from(part) / f64::from(PARTS),
    }
}

/// Parts, at least `least` each, of `heads` heads that keep `density` of the text on average, as unevenly as `spread` says.
fn draw(
    (heads, least): (usize, u32),
    density: f64,
    spread: f64,
    seed: u64,
    number: usize,
) -> Vec<u32> {
    let mut rng = seeded("moa estimator study 1", "plan", 0, seed, number);
    let weights: Vec<f64> = (0..heads)
        .map(|_| {
            // A sum of twelve uniform numbers is as good as normal here.
            let normal: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
            (spread * normal).exp()
        })
        .collect();
    let share = |scale: f64| -> f64 {
        weights
            .iter()
            .map(|weight| (weight * scale).min(1.0))
            .sum::<f64>()
            / heads as f64
    };
    let (mut low, mut high) = (0.0, 1.0);
    while share(high) < density && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if share(middle) < density {
            low = middle;
        } else {
            high = middle;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    let mut parts: Vec<u32> = weights
        .iter()
        .map(|weight| {
            ((weight * high).min(1.0) * f64::from(PARTS))
                .round()
                .max(f64::from(least)) as u32
        })
        .collect();
    // Rounding shifts the sum; heads in turn take or give a part until it is right.
    #[expect(clippy::cast_possible_truncation, reason = "64 parts a head")]
    let wanted = (density * f64::from(PARTS) * heads as f64).round() as i64;
    for step in 0..heads * PARTS as usize {
        let sum: i64 = parts.iter().map(|part| i64::from(*part)).sum();
        let part = &mut parts[(step * 7 + number) % heads];
        match sum.cmp(&wanted) {
            std::cmp::Ordering::Less if *part < PARTS => *part += 1,
            std::cmp::Ordering::Greater if *part > least => *part -= 1,
            std::cmp::Ordering::Equal => break,
            _ => {}
        }
    }
    parts
}

/// A cost table, and what it is of.
struct Predictor {
    name: String,
    estimator: Estimator,
    monotone: bool,
    of: String,
    /// `[head][part - 1]`.
    table: Vec<f64>,
}

impl Predictor {
    fn cost(&self, parts: &[u32]) -> f64 {
        self.table
            .chunks_exact(PARTS as usize)
            .zip(parts)
            .map(|(costs, &part)| costs[part as usize - 1])
            .sum()
    }
}

/// A name, and weights of kinds and of lengths.
type Wanted = (String, BTreeMap<String, f64>, BTreeMap<u32, f64>);

fn predictors(curves: &Curves) -> Vec<Predictor> {
    let rules: Vec<HeadRule> = (1..=PARTS).map(rule).collect();
    let mut wanted: Vec<Wanted> = Vec::new();
    for group in ["task", "text"] {
        let other = if group == "task" { "text" } else { "task" };
        wanted.push((
            group.to_owned(),
            BTreeMap::from([(group.to_owned(), 1.0), (other.to_owned(), 0.0)]),
            BTreeMap::new(),
        ));
    }
    for (&length, of_length) in &curves.lengths {
        for kind in of_length.kinds.keys() {
            let mut kinds = BTreeMap::from([("task".to_owned(), 0.0), ("text".to_owned(), 0.0)]);
            kinds.insert(kind.clone(), 1.0);
            let lengths = curves
                .lengths
                .keys()
                .map(|&other| (other, f64::from(other == length)))
                .collect();
            wanted.push((format!("{kind}.{length}"), kinds, lengths));
        }
    }
    let mut predictors = Vec::new();
    for estimator in Estimator::ALL {
        for monotone in [false, true] {
            for (of, kinds, lengths) in &wanted {
                let spec = CostSpec {
                    scale: Scale::Nats,
                    monotone,
                    kinds: kinds.clone(),
                    lengths: lengths.clone(),
                    ..CostSpec::new(estimator)
                };
                let suffix = if monotone { "+monotone" } else { "" };
                predictors.push(Predictor {
                    name: format!("{}{suffix}.{of}", estimator.name()),
                    estimator,
                    monotone,
                    of: of.clone(),
                    table: costs(curves, &spec, &rules, &[]),
                });
            }
        }
    }
    predictors
}

fn rank(drawn: &[Drawn], predictors: &[Predictor], seed: u64) -> Vec<Ranked> {
    let mut ranked = Vec::new();
    for predictor in predictors {
        let measured: Option<Vec<f64>> = drawn
            .iter()
            .map(|one| match predictor.of.as_str() {
                "task" => one.measured.task,
                "text" => one.measured.text,
                part => one.measured.parts.get(part).copied(),
            })
            .collect();
        let Some(measured) = measured.filter(|measured| measured.len() > 2) else {
            continue;
        };
        let predicted: Vec<f64> = drawn
            .iter()
            .map(|one| one.predicted[&predictor.name])
            .collect();
        let at = |values: &[f64], indices: &[usize]| -> Vec<f64> {
            indices.iter().map(|&index| values[index]).collect()
        };
        ranked.push(Ranked {
            estimator: predictor.estimator.name().to_owned(),
            monotone: predictor.monotone,
            of: predictor.of.clone(),
            spearman: spearman(&predicted, &measured),
            interval: bootstrap(drawn.len(), seed, |indices| {
                spearman(&at(&predicted, indices), &at(&measured, indices))
            }),
            kendall: kendall(&predicted, &measured),
        });
    }
    ranked
}

/// Whether a row belongs into the table for people: groups, not single kinds.
pub(crate) fn is_group(of: &str) -> bool {
    of == "task" || of == "text" || is_text(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_plans_keep_what_they_should_and_differ() {
        for (number, spread) in SPREADS.into_iter().enumerate() {
            for density in [0.25, 0.5, 0.9] {
                let parts = draw((90, 2), density, spread, 1, number);
                let mean = parts.iter().map(|part| f64::from(*part)).sum::<f64>() / 90.0 / 64.0;
                assert!((mean - density).abs() < 0.001, "{mean} for {density}");
                assert!(parts.iter().all(|part| (2..=64).contains(part)));
                assert_eq!(parts, draw((90, 2), density, spread, 1, number));
                assert_ne!(parts, draw((90, 2), density, spread, 2, number));
            }
        }
        let deviation = |spread| {
            let parts = draw((90, 2), 0.5, spread, 1, 0);
            parts
                .iter()
                .map(|part| (f64::from(*part) - 32.0).abs())
                .sum::<f64>()
        };
        assert!(deviation(2.0) > 2.0 * deviation(0.3));
    }
}
