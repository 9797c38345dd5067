//! Plans measured on samples that no profile saw: what a search accepts a plan by.
//!
//! Of samples that ask for something the measure is the cross entropy that a plan adds to the right answer; of plain
//! texts the divergence from the dense model. Both are nats a token, means over kinds and lengths, and the loss of a plan
//! is the first plus the second times a weight. An answer that is likelier than under the dense model counts as just as
//! good: otherwise plans are found that trade text for certainty of the calibration's answers, and that do worse elsewhere. Measurements wait in a file, so that an interrupted search finds them.

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
const VERSION: u32 = 1;
const LOG_LIMIT: u64 = 1 << 30;

/// What a plan costs on held-out samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Added cross entropy of right answers in nats a token, mean over kinds and lengths; absent without such samples.
    pub(crate) task: Option<f64>,
    /// Divergence from the dense model on text in nats a token; absent without texts.
    pub(crate) text: Option<f64>,
    /// The mean of what answers lose, gains counting nothing, plus `text_weight * text`.
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
        let dense = ModelMasks::dense(
            scorer.config().layers as usize,
            scorer.config().kv_heads as usize,
        );
        let bar = self.printer.bar("measuring", self.samples.len() as u64);
        let mut parts: BTreeMap<(bool, String), Vec<f64>> = BTreeMap::new();
        for index in 0..self.samples.len() {
            let (length, text) = {
                let (length, sample) = &self.samples[index];
                (*length, is_text(&sample.kind))
            };
            let own = self.value(scorer, index, masks(length)?)?;
            let added = if text {
                own
            } else {
                own - self.value(scorer, index, dense.clone())?
            };
            let name = format!("{}.{length}", self.samples[index].1.kind);
            parts.entry((text, name)).or_default().push(added);
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
        let tasks = parts.iter().filter(|((text, _), _)| !text);
        let lost: Vec<f64> = tasks.map(|(_, values)| mean(values).max(0.0)).collect();
        let lost = if lost.is_empty() { 0.0 } else { mean(&lost) };
        Ok(Measured {
            loss: lost + self.text_weight * text.unwrap_or(0.0),
            task,
            text,
            parts: parts
                .iter()
                .map(|((_, name), values)| (name.clone(), mean(values)))
                .collect(),
        })
    }

    /// Cross entropy or divergence of one sample.
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
        let value = if is_text(&sample.kind) {
            scorer.divergence(&input, &under)?
        } else {
            scorer.cross_entropy(&input, &under)?
        };
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

    /// A model whose losses follow from how much its heads see.
    pub(crate) struct Fake {
        pub(crate) config: ModelConfig,
        pub(crate) calls: Cell<usize>,
        /// Weight of each head on tasks and on text.
        pub(crate) needs: Vec<(f64, f64)>,
    }

    impl Fake {
        fn lacking(&self, under: &Under, weight: fn(&(f64, f64)) -> f64) -> f64 {
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

        fn cross_entropy(&self, _: &Input, under: &Under) -> anyhow::Result<f64> {
            Ok(0.5 + self.lacking(under, |need| need.0))
        }

        fn divergence(&self, _: &Input, under: &Under) -> anyhow::Result<f64> {
            Ok(self.lacking(under, |need| need.1))
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
    fn tasks_are_compared_with_dense_and_nothing_is_measured_twice() {
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
            vec![sample("needle", 1), sample("needle", 2), sample("prose", 3)],
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
        assert_eq!(first, Some(5), "two tasks twice, one text once");
        assert_eq!(fake.calls.get(), 5, "the second bench read them");
    }

    #[test]
    fn answers_likelier_than_under_the_dense_model_make_up_for_nothing() {
        let fake = Fake {
            config: crate::evaluate::duo_tests::config(),
            calls: Cell::new(0),
            needs: vec![(-1.0, 2.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)],
        };
        let sample = |kind: &str, id| Sample {
            ids: vec![id; 100],
            response_start: 50,
            kind: kind.into(),
        };
        let samples = BTreeMap::from([(100, vec![sample("needle", 1), sample("prose", 3)])]);
        let (printer, cancel) = (printer(), AtomicBool::new(false));
        let mut bench = Bench::open(samples, "m".into(), 3.0, None, &printer, &cancel).unwrap();
        let half = |_| Ok(ModelMasks::uniform(2, 2, HeadMask::from_span(50, 10)));
        let measured = bench.measure(&fake, &half).unwrap();
        assert_eq!((measured.task, measured.text), (Some(-0.5), Some(1.0)));
        assert_eq!(measured.loss, 3.0);
    }
}
