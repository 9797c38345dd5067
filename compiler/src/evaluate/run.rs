//! Runs every method over the same trials, one row for each, and remembers rows in a file as they come.
//!
//! A row names everything that its numbers depend on; a run that finds it in the file does not compute it again, so an
//! interrupted evaluation goes on where it stopped. What rows amount to is [`super::results`]'s business.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use moa_format::sha256_hex;
use moa_lm::{KvPrecision, Sample};
use moa_mask::density::kv_density;
use moa_model::ChatTokenizer;
use serde::{Deserialize, Serialize};

use super::longbench::Records;
use super::method::Method;
use super::scorer::{Answer, Job, Scorer, Under};
use super::trial::{Check, Family, Trial};
use super::windows::{self, Corpus};
use super::{lines, retrieval};
use crate::calibrate::Tokenize;
use crate::hint::Told;
use crate::journal::Journal;
use crate::printer::Printer;

/// Changes whenever a row's numbers would.
const ROW_VERSION: u32 = 1;
const LOG_LIMIT: u64 = 4 << 30;

/// One method on one trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Hash of everything that the numbers depend on.
    pub(crate) key: String,
    pub(crate) suite: Family,
    pub(crate) method: String,
    /// Tokens of the prompt that were asked for.
    pub(crate) length: u32,
    /// The declared context length M.
    pub(crate) context: u32,
    pub(crate) kv_density: f64,
    pub(crate) index: usize,
    pub(crate) seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) depth: Option<f64>,
    /// What the answer is worth, 0 to 1; for texts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) score: Option<f64>,
    /// Mean negative log likelihood in nats: of a right answer, or of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nll: Option<f64>,
    /// Mean divergence from the dense model in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kl: Option<f64>,
    /// Whether the answer is the dense model's, token by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) agrees: Option<bool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) expected: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tokens: Vec<u32>,
}

/// Rows of earlier runs, and the file that new ones go to.
pub(crate) struct RowLog {
    known: BTreeMap<String, Row>,
    journal: Option<Journal>,
}

impl RowLog {
    /// Opens a file of rows; without a path nothing is remembered.
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let mut log = Self {
            known: BTreeMap::new(),
            journal: None,
        };
        let Some(path) = path else { return Ok(log) };
        let (journal, lines) = Journal::open(path, LOG_LIMIT)?;
        log.journal = Some(journal);
        for (number, line) in lines.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let row: Row = serde_json::from_slice(line).map_err(|error| {
                Told::new(
                    format!("{} line {}: {error}", path.display(), number + 1),
                    "name a file that an evaluation wrote, or a new one",
                )
            })?;
            log.known.insert(row.key.clone(), row);
        }
        Ok(log)
    }

    /// Rows that were there before.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    fn find(&self, key: &str) -> Option<&Row> {
        self.known.get(key)
    }

    fn push(&mut self, row: &Row) -> anyhow::Result<()> {
        match &mut self.journal {
            Some(journal) => journal.push(row),
            None => Ok(()),
        }
    }
}

/// What is measured.
pub(crate) struct Plan<'a> {
    pub(crate) tokenizer: Option<&'a ChatTokenizer>,
    /// Hash of the model's weights.
    pub(crate) model: String,
    pub(crate) families: Vec<Family>,
    pub(crate) records: Option<Records>,
    pub(crate) corpus: Corpus,
    pub(crate) lengths: Vec<u32>,
    pub(crate) trials: usize,
    pub(crate) methods: Vec<Method>,
    /// Declared context length, instead of prompt and answer together.
    pub(crate) context: Option<u32>,
    pub(crate) seed: u64,
}

impl Plan<'_> {
    fn dyn_tokenizer(&self) -> Option<&dyn Tokenize> {
        self.tokenizer.map(|tokenizer| tokenizer as &dyn Tokenize)
    }

    fn trials_of(
        &self,
        family: Family,
        length: u32,
        vocab_size: u32,
    ) -> anyhow::Result<Vec<Trial>> {
        let (count, seed) = (self.trials, self.seed);
        if family.is_text() || family == Family::Agreement {
            let tokenizer = self.dyn_tokenizer();
            let windows = self
                .corpus
                .windows(tokenizer, vocab_size, length, count, seed)?;
            return Ok(windows::trials(family, windows));
        }
        let tokenizer = self.dyn_tokenizer().ok_or_else(|| {
            Told::new(
                format!(
                    "this model has no tokenizer, and {} asks in words",
                    family.name()
                ),
                "use --suites perplexity,kl,agreement",
            )
        })?;
        let text = self.corpus.sentences();
        Ok(match (family, &self.records) {
            (Family::Longbench, Some(records)) => records.trials(tokenizer, length, count, seed)?,
            (Family::Lines, _) => lines::trials(tokenizer, length, count, seed)?,
            _ => retrieval::trials(family, tokenizer, text, length, count, seed)?,
        })
    }

    fn decode(&self, tokens: &[u32]) -> Option<String> {
        let tokenizer = self.tokenizer?;
        tokenizer.decode(tokens, true).ok()
    }

    /// Runs everything; `log` gives and takes rows.
    pub(crate) fn run(
        &self,
        scorer: &dyn Scorer,
        log: &mut RowLog,
        printer: &Printer,
        cancel: &AtomicBool,
    ) -> anyhow::Result<Vec<Row>> {
        let total = self.families.len() * self.lengths.len() * self.trials * self.methods.len();
        let bar = printer.bar("evaluating", total as u64);
        let config = scorer.config();
        let mut rows = Vec::new();
        // The dense model goes first: what it writes is what the others are compared with.
        let mut order: Vec<&Method> = self.methods.iter().collect();
        order.sort_by_key(|method| !method.is_dense());
        let dense = Method::dense();
        for &family in &self.families {
            for &length in &self.lengths {
                let trials = self.trials_of(family, length, config.vocab_size)?;
                let max_new = trials.iter().map(|trial| trial.max_new).max().unwrap_or(0);
                let context = self.context.unwrap_or(length + max_new);
                if context < length + max_new {
                    return Err(Told::new(
                        format!("--context {context} does not hold {length} tokens and an answer of {max_new}"),
                        format!("use --context {} or more", length + max_new),
                    )
                    .into());
                }
                let mut order = order.clone();
                let hidden = family == Family::Agreement && !order.iter().any(|m| m.is_dense());
                if hidden {
                    order.insert(0, &dense);
                }
                let mut like: Option<Vec<Vec<u32>>> = None;
                for method in order {
                    let under = method.under(config, context)?;
                    let density = kv_density(under.masks.iter(), context);
                    let mut of_method = Vec::with_capacity(trials.len());
                    for batch in trials.chunks(scorer.batch().max(1)) {
                        if cancel.load(Ordering::Relaxed) {
                            return Err(Told::new(
                                "interrupted",
                                "rows in the file of --trials-out are kept; run the same command again to go on",
                            )
                            .into());
                        }
                        let made = self.rows(scorer, batch, method, &under, log)?;
                        for (trial, mut row) in batch.iter().zip(made) {
                            row.method.clone_from(&method.name);
                            row.length = length;
                            row.context = context;
                            row.kv_density = density;
                            if let Some(dense) = &like {
                                compare(&mut row, trial, &dense[trial.index]);
                            } else if method.is_dense() && !family.is_text() {
                                let own = row.tokens.clone();
                                compare(&mut row, trial, &own);
                            }
                            if log.find(&row.key).is_none() {
                                log.push(&row)?;
                            }
                            of_method.push(row);
                            bar.inc(1);
                        }
                    }
                    if method.is_dense() && !family.is_text() {
                        like = Some(of_method.iter().map(|row| row.tokens.clone()).collect());
                        if hidden {
                            continue;
                        }
                    }
                    rows.extend(of_method);
                }
            }
        }
        bar.finish_and_clear();
        Ok(rows)
    }

    /// Rows of one batch, from the log where it has them.
    fn rows(
        &self,
        scorer: &dyn Scorer,
        batch: &[Trial],
        method: &Method,
        under: &Under,
        log: &RowLog,
    ) -> anyhow::Result<Vec<Row>> {
        let keys: Vec<String> = batch
            .iter()
            .map(|trial| self.key(trial, method, under))
            .collect();
        if let Some(known) = keys.iter().map(|key| log.find(key).cloned()).collect() {
            return Ok(known);
        }
        let blank = |trial: &Trial, key: &String| Row {
            key: key.clone(),
            suite: trial.family,
            method: String::new(),
            length: 0,
            context: 0,
            kv_density: 0.0,
            index: trial.index,
            seed: self.seed,
            source: trial.source.clone(),
            depth: trial.depth,
            score: None,
            nll: None,
            kl: None,
            agrees: None,
            expected: trial.check.expected(),
            answer: None,
            tokens: Vec::new(),
        };
        let mut rows: Vec<Row> = batch
            .iter()
            .zip(&keys)
            .map(|(trial, key)| blank(trial, key))
            .collect();
        if batch.iter().any(|trial| trial.family.is_text()) {
            for (row, trial) in rows.iter_mut().zip(batch) {
                let start = u32::try_from((trial.ids.len() / 2).max(1))?;
                let sample = Sample::new(trial.ids.clone(), start);
                match trial.family {
                    Family::Kl => row.kl = Some(scorer.divergence(&sample, under)?),
                    _ => row.nll = Some(scorer.cross_entropy(&sample, under)?),
                }
            }
            return Ok(rows);
        }
        let jobs: Vec<Job<'_>> = batch
            .iter()
            .map(|trial| Job {
                prompt: &trial.ids,
                gold: &trial.gold,
                max_new: trial.max_new,
            })
            .collect();
        let decided = |number: usize, tokens: &[u32]| {
            let check = &batch[number].check;
            // Only where what follows changes nothing: a number that has ended and is right.
            matches!(check, Check::Number(_))
                && self
                    .decode(tokens)
                    .is_some_and(|text| check.is_decided(&text))
        };
        let answers: Vec<Answer> = scorer.answer(&jobs, under, &decided)?;
        for ((row, trial), answer) in rows.iter_mut().zip(batch).zip(answers) {
            row.nll = answer.nll;
            row.answer = self.decode(&answer.tokens);
            row.tokens = answer.tokens;
            if trial.check != Check::LikeDense {
                row.score = Some(trial.check.score(row.answer.as_deref().unwrap_or_default()));
            }
        }
        Ok(rows)
    }

    /// Hash of what a row's numbers depend on.
    fn key(&self, trial: &Trial, method: &Method, under: &Under) -> String {
        let kv = if under.kv == KvPrecision::Int8 {
            "kv8"
        } else {
            ""
        };
        let mut text = format!(
            "{ROW_VERSION} {} {} {} {} {} {kv} {:?}",
            self.model,
            method.name,
            trial.family.name(),
            under.context,
            trial.max_new,
            trial.check
        );
        for mask in under.masks.iter() {
            let window = mask.window.min(under.context);
            text += &format!(" {}.{window}", mask.sink.min(under.context));
        }
        for ids in [&trial.ids, &trial.gold] {
            text += " |";
            for id in ids {
                text += &format!(" {id}");
            }
        }
        sha256_hex(text.as_bytes())
    }
}

/// Compares an answer with the dense model's.
fn compare(row: &mut Row, trial: &Trial, dense: &[u32]) {
    // An answer that was cut off once it was decided agrees as far as it goes.
    let decided = matches!(trial.check, Check::Number(_)) && row.score == Some(1.0);
    let shorter = row.tokens.len().min(dense.len());
    row.agrees = Some(if decided {
        row.tokens[..shorter] == dense[..shorter]
    } else {
        row.tokens == dense
    });
    if trial.check == Check::LikeDense {
        let same = row
            .tokens
            .iter()
            .zip(dense)
            .take_while(|(own, dense)| own == dense)
            .count();
        let whole = row.tokens.len().max(dense.len());
        row.score = Some(if whole == 0 {
            1.0
        } else {
            same as f64 / whole as f64
        });
    }
}
