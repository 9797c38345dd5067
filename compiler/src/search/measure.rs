//! Plans measured on samples that no profile saw: what a search accepts a plan by.
//!
//! The measure is the divergence from the dense model, of answers and of plain texts, in nats a token, means over kinds
//! and lengths; the loss of a plan is the first plus the second times a weight. The cross entropy of right answers in its place
//! makes plans that trade text for certainty of the calibration's answers, and that do worse elsewhere. Measurements wait
//! in a file, so that an interrupted search finds them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use moa_format::sha256_hex;
use moa_lm::KvPrecision;
use moa_mask::ModelMasks;
use serde::{Deserialize, Serialize};

use super::interrupted;
use crate::calibrate::Sample;
use crate::evaluate::{Scorer, Under};
use crate::journal::Journal;
use crate::printer::Printer;
use crate::profile::is_text;

/// Changes whenever a measurement would.
const VERSION: u32 = 2;
const LOG_LIMIT: u64 = 1 << 30;

/// What a plan costs on held-out samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Divergence from the dense model on answers in nats a token, mean over kinds and lengths; absent without such samples.
    pub(crate) task: Option<f64>,
    /// The same on text; absent without texts.
    pub(crate) text: Option<f64>,
    /// `task + text_weight * text`.
    pub(crate) loss: f64,
    /// By kind and length, `needle.2048`.
    pub(crate) parts: BTreeMap<String, f64>,
}

impl Measured {
    /// Task and text as a point of a front; what was not measured counts nothing.
    pub(crate) fn point(&self) -> (f64, f64) {
        (self.task.unwrap_or(0.0), self.text.unwrap_or(0.0))
    }
}

/// Held-out samples, and what is known of plans on them.
pub(crate) struct Bench<'a> {
    samples: Vec<(u32, Sample)>,
    model: String,
    text_weight: f64,
    known: BTreeMap<String, f64>,
    log: Option<Journal>,
    printer: &'a Printer,
    cancel: &'a AtomicBool,
}

#[derive(Serialize, Deserialize)]
struct Known {
    key: String,
    value: f64,
}

impl<'a> Bench<'a> {
    /// A bench over `samples`; with `log`, measurements wait in that file.
    pub(crate) fn open(
        samples: BTreeMap<u32, Vec<Sample>>,
        model: String,
        text_weight: f64,
        log: Option<&Path>,
        printer: &'a Printer,
        cancel: &'a AtomicBool,
    ) -> anyhow::Result<Self> {
        let mut bench = Self {
            samples: samples
                .into_iter()
                .flat_map(|(length, list)| list.into_iter().map(move |sample| (length, sample)))
                .collect(),
            model,
            text_weight,
            known: BTreeMap::new(),
            log: None,
            printer,
            cancel,
        };
        if let Some(path) = log {
            let (journal, lines) = Journal::open(path, LOG_LIMIT)?;
            let lines = lines.split(|byte| *byte == b'\n');
            let known = lines.filter_map(|line| serde_json::from_slice::<Known>(line).ok());
            bench.known = known.map(|one| (one.key, one.value)).collect();
            bench.log = Some(journal);
        }
        Ok(bench)
    }

    /// Measures masks that depend on the length.
    pub(crate) fn measure(
        &mut self,
        scorer: &dyn Scorer,
        masks: &dyn Fn(u32) -> anyhow::Result<ModelMasks>,
    ) -> anyhow::Result<Measured> {
        let bar = self.printer.bar("measuring", self.samples.len() as u64);
        let mut parts: BTreeMap<(bool, String), Vec<f64>> = BTreeMap::new();
        for index in 0..self.samples.len() {
            let length = self.samples[index].0;
            let value = self.value(scorer, index, masks(length)?)?;
            let kind = &self.samples[index].1.kind;
            let part = (is_text(kind), format!("{kind}.{length}"));
            parts.entry(part).or_default().push(value);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let group = |wanted: bool| {
            let of: Vec<f64> = parts
                .iter()
                .filter(|((text, _), _)| *text == wanted)
                .map(|(_, values)| mean(values))
                .collect();
            (!of.is_empty()).then(|| mean(&of))
        };
        let (task, text) = (group(false), group(true));
        Ok(Measured {
            loss: task.unwrap_or(0.0) + self.text_weight * text.unwrap_or(0.0),
            task,
            text,
            parts: parts
                .iter()
                .map(|((_, name), values)| (name.clone(), mean(values)))
                .collect(),
        })
    }

    /// Divergence of one sample.
    fn value(
        &mut self,
        scorer: &dyn Scorer,
        index: usize,
        masks: ModelMasks,
    ) -> anyhow::Result<f64> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(interrupted().into());
        }
        let (length, sample) = &self.samples[index];
        let mut text = format!(
            "{VERSION} {} {length} {} {}",
            self.model, sample.kind, sample.response_start
        );
        for mask in masks.iter() {
            text += &format!(" {}.{}", mask.sink.min(*length), mask.window.min(*length));
        }
        for id in &sample.ids {
            text += &format!(" {id}");
        }
        let key = sha256_hex(text.as_bytes());
        if let Some(value) = self.known.get(&key) {
            return Ok(*value);
        }
        let input = moa_lm::Sample::new(sample.ids.clone(), u32::try_from(sample.response_start)?);
        let under = Under {
            masks,
            context: *length,
            kv: KvPrecision::Full,
        };
        let value = scorer.divergence(&input, &under)?;
        if let Some(log) = &mut self.log {
            log.push(&Known {
                key: key.clone(),
                value,
            })?;
        }
        self.known.insert(key, value);
        Ok(value)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use moa_format::ModelConfig;
    use moa_lm::Sample as Input;
    use moa_mask::{HeadMask, density::kv_density};

    use super::*;
    use crate::cli::Global;
    use crate::evaluate::{Answer, Job};

    /// First token of what is text to a fake model.
    const TEXT_ID: u32 = 3;

    /// A model whose losses follow from how much its heads see.
    pub(crate) struct Fake {
        pub(crate) config: ModelConfig,
        pub(crate) calls: Cell<usize>,
        /// Weight of each head on tasks and on text.
        pub(crate) needs: Vec<(f64, f64)>,
    }

    impl Fake {
        fn lacking(&self, under: &Under, weight: impl Fn(&(f64, f64)) -> f64) -> f64 {
            self.calls.set(self.calls.get() + 1);
            under
                .masks
                .iter()
                .zip(&self.needs)
                .map(|(mask, need)| weight(need) * (1.0 - kv_density([mask], under.context)))
                .sum()
        }
    }

    impl Scorer for Fake {
        fn config(&self) -> &ModelConfig {
            &self.config
        }

        fn device(&self) -> String {
            "none".into()
        }

        fn answer(
            &self,
            _: &[Job<'_>],
            _: &Under,
            _: &dyn Fn(usize, &[u32]) -> bool,
        ) -> anyhow::Result<Vec<Answer>> {
            anyhow::bail!("a fake model has nothing to say")
        }

        fn cross_entropy(&self, _: &Input, _: &Under) -> anyhow::Result<f64> {
            anyhow::bail!("nobody asks how likely an answer is")
        }

        fn divergence(&self, input: &Input, under: &Under) -> anyhow::Result<f64> {
            let text = input.ids[0] == TEXT_ID;
            Ok(self.lacking(under, |need| if text { need.1 } else { need.0 }))
        }
    }

    pub(crate) fn printer() -> Printer {
        Printer::new(&Global {
            json: false,
            quiet: true,
            verbose: 0,
            no_progress: true,
        })
    }

    #[test]
    fn tasks_and_texts_are_weighed_and_nothing_is_measured_twice() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("measured.jsonl");
        let fake = Fake {
            config: crate::evaluate::duo_tests::config(),
            calls: Cell::new(0),
            needs: vec![(1.0, 0.0), (0.0, 2.0), (0.0, 0.0), (0.0, 0.0)],
        };
        let sample = |kind: &str, id| Sample {
            ids: vec![id; 100],
            response_start: 50,
            kind: kind.into(),
        };
        let samples = BTreeMap::from([(
            100,
            vec![
                sample("needle", 1),
                sample("needle", 2),
                sample("prose", TEXT_ID),
            ],
        )]);
        let (printer, cancel) = (printer(), AtomicBool::new(false));
        let half = |_| Ok(ModelMasks::uniform(2, 2, HeadMask::from_span(50, 10)));
        let mut first = None;
        for _ in 0..2 {
            let mut bench = Bench::open(
                samples.clone(),
                "m".into(),
                3.0,
                Some(&log),
                &printer,
                &cancel,
            )
            .unwrap();
            let measured = bench.measure(&fake, &half).unwrap();
            assert_eq!((measured.task, measured.text), (Some(0.5), Some(1.0)));
            assert_eq!(measured.loss, 3.5);
            assert_eq!(measured.parts["prose.100"], 1.0);
            first.get_or_insert(fake.calls.get());
        }
        assert_eq!(first, Some(3), "each sample once");
        assert_eq!(fake.calls.get(), 3, "the second bench read them");
    }
}
