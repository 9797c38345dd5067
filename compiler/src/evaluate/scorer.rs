//! What evaluation asks of a model, so that its suites know neither device nor engine.
//!
//! [`LmScorer`] answers one prompt after the other over any `moa_lm::Device`. An engine that takes many prompts at once
//! implements the same trait and says so by [`Scorer::batch`]. Nothing here knows what an answer is worth.

use std::sync::atomic::AtomicBool;

use moa_format::ModelConfig;
use moa_lm::{Device, KvPrecision, Lm, Sample};
use moa_mask::{KvFormat, ModelMasks};

/// Gold tokens that are teacher-forced at most: fewer than a session can take back.
pub(super) const GOLD_TOKENS: usize = 48;

/// How the model runs.
#[derive(Debug, Clone)]
pub(crate) struct Under {
    /// What each head sees.
    pub(crate) masks: ModelMasks,
    /// The declared context length.
    pub(crate) context: u32,
    /// What keys and values are rounded to.
    pub(crate) kv: KvPrecision,
}

impl Under {
    /// How a cache keeps what the model sees.
    pub(crate) fn format(&self) -> KvFormat {
        match self.kv {
            KvPrecision::Full => KvFormat::Sixteen,
            KvPrecision::Int8 => KvFormat::Int8,
        }
    }
}

/// A prompt to answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) prompt: &'a [u32],
    /// A right answer; its likelihood is wanted. May be empty.
    pub(crate) gold: &'a [u32],
    /// Tokens to write at most.
    pub(crate) max_new: u32,
}

/// What came of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// Tokens written greedily, the stop token excluded.
    pub(crate) tokens: Vec<u32>,
    /// Mean negative log likelihood of the gold tokens in nats, after the prompt and each other.
    pub(crate) nll: Option<f64>,
}

/// A model that answers and reads.
pub(crate) trait Scorer {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// Where it computes.
    fn device(&self) -> String;

    /// Prompts that are best given at once.
    fn batch(&self) -> usize {
        1
    }

    /// Answers prompts greedily. `decided` may end an answer early: it is told the number of the job and the tokens so
    /// far, and an engine may ask it as often or as rarely as it likes.
    fn answer(
        &self,
        jobs: &[Job<'_>],
        under: &Under,
        decided: &dyn Fn(usize, &[u32]) -> bool,
    ) -> anyhow::Result<Vec<Answer>>;

    /// Mean cross entropy in nats of a sample's targets.
    fn cross_entropy(&self, sample: &Sample, under: &Under) -> anyhow::Result<f64>;

    /// Mean KL divergence in nats from the dense model, at a sample's targets.
    fn divergence(&self, sample: &Sample, under: &Under) -> anyhow::Result<f64>;
}

/// A model of `moa_lm`, one prompt at a time.
pub(crate) struct LmScorer<'a, D: Device> {
    lm: &'a Lm<D>,
    cancel: &'a AtomicBool,
}

impl<'a, D: Device> LmScorer<'a, D> {
    pub(crate) fn new(lm: &'a Lm<D>, cancel: &'a AtomicBool) -> Self {
        Self { lm, cancel }
    }

    /// Runs `work` with keys and values rounded as `under` says.
    fn rounding<T>(
        &self,
        under: &Under,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.lm.set_kv_precision(under.kv);
        let result = work();
        self.lm.set_kv_precision(KvPrecision::Full);
        result
    }

    fn one(
        &self,
        job: &Job<'_>,
        under: &Under,
        decided: &dyn Fn(&[u32]) -> bool,
    ) -> anyhow::Result<Answer> {
        let mut session = self.lm.session(Some(&under.masks), under.context)?;
        let first = session.prefill_watched(job.prompt, self.cancel)?;
        let room = (under.context - session.len()) as usize;
        let gold = &job.gold[..job.gold.len().min(GOLD_TOKENS).min(room)];
        let mut nll = None;
        if let Some((&head, rest)) = gold.split_first() {
            let mut sum = -log_probability(&first, head);
            let mut before = head;
            for &id in rest {
                sum -= log_probability(&session.decode(before)?, id);
                before = id;
            }
            session.rewind(u32::try_from(rest.len())?)?;
            nll = Some(sum / gold.len() as f64);
        }
        let mut tokens = Vec::new();
        let mut logits = first;
        while tokens.len() < job.max_new as usize {
            let id = moa_lm::argmax(&logits);
            if self.lm.config().eos.contains(&id) {
                break;
            }
            tokens.push(id);
            let full = session.len() == under.context || tokens.len() == job.max_new as usize;
            if full || decided(&tokens) {
                break;
            }
            logits = session.prefill_watched(&[id], self.cancel)?;
        }
        Ok(Answer { tokens, nll })
    }
}

impl<D: Device> Scorer for LmScorer<'_, D> {
    fn config(&self) -> &ModelConfig {
        self.lm.config()
    }

    fn device(&self) -> String {
        self.lm.device().label()
    }

    fn answer(
        &self,
        jobs: &[Job<'_>],
        under: &Under,
        decided: &dyn Fn(usize, &[u32]) -> bool,
    ) -> anyhow::Result<Vec<Answer>> {
        self.rounding(under, || {
            jobs.iter()
                .enumerate()
                .map(|(number, job)| self.one(job, under, &|tokens| decided(number, tokens)))
                .collect()
        })
    }

    fn cross_entropy(&self, sample: &Sample, under: &Under) -> anyhow::Result<f64> {
        self.rounding(under, || {
            Ok(self.lm.loss(sample, Some(&under.masks), self.cancel)?)
        })
    }

    fn divergence(&self, sample: &Sample, under: &Under) -> anyhow::Result<f64> {
        self.rounding(under, || {
            Ok(self
                .lm
                .kl_to_dense(sample, Some(&under.masks), self.cancel)?)
        })
    }
}

/// Natural logarithm of a token's probability.
fn log_probability(logits: &[f32], id: u32) -> f64 {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, logit| {
        largest.max(f64::from(*logit))
    });
    let sum: f64 = logits
        .iter()
        .map(|logit| (f64::from(*logit) - largest).exp())
        .sum();
    let own = logits
        .get(id as usize)
        .map_or(f64::NEG_INFINITY, |logit| f64::from(*logit));
    own - largest - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let logits = [80.0, -80.0, 79.5, 0.0];
        let total: f64 = (0..4).map(|id| log_probability(&logits, id).exp()).sum();
        assert!((total - 1.0).abs() < 1e-12);
        assert_eq!(log_probability(&logits, 9), f64::NEG_INFINITY);
    }
}
