//! The scorer that answers many prompts at once on a CUDA device; what it cannot do, and texts, it leaves to the one beneath.
//!
//! The engine computes on the GPU that profiles, in its stream. Its weights (bf16, beside those of the profile) are loaded when the first prompts come. An engine serves one
//! plan at one context, so it is kept until another is asked for. Whether an answer is decided is asked now and then, not after every token.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use moa_cuda_engine::{Answer as Written, CudaError, Engine, EngineError, EngineOptions, Gpu};
use moa_cuda_engine::{Model, Question};
use moa_format::ModelConfig;
use moa_lm::{LmError, Sample, WeightSource};

use super::scorer::{Answer, GOLD_TOKENS, Job, Scorer, Under};

/// Prompts at once, where memory allows.
const BATCH: usize = 32;

/// Tokens of all prompts that are read at once.
const CHUNK: usize = 4096;

/// Answers in batches.
pub(crate) struct BatchScorer<'a> {
    beneath: Box<dyn Scorer + 'a>,
    gpu: Arc<Gpu>,
    source: &'a dyn WeightSource,
    cancel: &'a AtomicBool,
    state: RefCell<State>,
}

/// What is on the device.
enum State {
    /// Nothing yet.
    Fresh,
    /// Weights, and the engine that was needed last.
    Loaded(Arc<Model>, Option<Box<(Under, Engine)>>),
    /// The engine does not serve this model, or there is no room for it.
    Unavailable,
}

impl<'a> BatchScorer<'a> {
    pub(crate) fn new(
        beneath: Box<dyn Scorer + 'a>,
        gpu: Arc<Gpu>,
        source: &'a dyn WeightSource,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self {
            beneath,
            gpu,
            source,
            cancel,
            state: RefCell::new(State::Fresh),
        }
    }

    /// Answers in the engine's terms; `None` where there is no engine.
    fn answers(
        &self,
        jobs: &[Job<'_>],
        under: &Under,
        decided: &dyn Fn(usize, &[u32]) -> bool,
    ) -> Result<Option<Vec<Written>>, EngineError> {
        let mut state = self.state.borrow_mut();
        if matches!(*state, State::Fresh) {
            *state = match Model::load(self.gpu.clone(), self.source) {
                Ok(model) => State::Loaded(Arc::new(model), None),
                Err(EngineError::Cuda(error)) => {
                    tracing::warn!("prompts are answered one by one: {error}");
                    State::Unavailable
                }
                Err(error) => return Err(error),
            };
        }
        let State::Loaded(model, slot) = &mut *state else {
            return Ok(None);
        };
        let same = |held: &Under| {
            held.context == under.context && held.kv == under.kv && held.masks == under.masks
        };
        if slot.as_ref().is_none_or(|held| !same(&held.0)) {
            // The old one's memory is needed.
            *slot = None;
            match engine(model, under) {
                Ok(engine) => *slot = Some(Box::new((under.clone(), engine))),
                Err(EngineError::Cuda(error)) => {
                    tracing::warn!("prompts are answered one by one: {error}");
                    *state = State::Unavailable;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let Some(held) = slot else {
            return Ok(None);
        };
        let engine = &mut held.1;
        let questions: Vec<Question<'_>> = jobs
            .iter()
            .map(|job| {
                let room = (under.context as usize).saturating_sub(job.prompt.len());
                Question {
                    prompt: job.prompt,
                    gold: &job.gold[..job.gold.len().min(GOLD_TOKENS).min(room)],
                    max_tokens: job.max_new as usize,
                }
            })
            .collect();
        engine
            .answer_batch(&questions, &self.source.config().eos, Some(decided))
            .map(Some)
    }
}

/// An engine for as many requests as half of the free memory holds, at least one.
fn engine(model: &Arc<Model>, under: &Under) -> Result<Engine, EngineError> {
    let format = under.format();
    let gpu = model.gpu();
    gpu.trim()?;
    let (free, _) = gpu.memory()?;
    let one = model
        .kv_shape()
        .batch_bytes(&under.masks, under.context, 1, 0, format)
        .map_err(LmError::from)?;
    let fit = free as u64 / 2 / one.total().max(1);
    let mut batch = usize::try_from(fit).unwrap_or(BATCH).clamp(1, BATCH);
    loop {
        let options = EngineOptions {
            context: under.context,
            batch,
            chunk: CHUNK,
            format,
        };
        match Engine::new(model.clone(), Some(&under.masks), options) {
            Err(EngineError::Cuda(CudaError::OutOfMemory { .. })) if batch > 1 => batch /= 2,
            made => return made,
        }
    }
}

impl Scorer for BatchScorer<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn device(&self) -> String {
        self.beneath.device()
    }

    fn batch(&self) -> usize {
        BATCH
    }

    fn answer(
        &self,
        jobs: &[Job<'_>],
        under: &Under,
        decided: &dyn Fn(usize, &[u32]) -> bool,
    ) -> anyhow::Result<Vec<Answer>> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(LmError::Cancelled.into());
        }
        let Some(written) = self.answers(jobs, under, decided)? else {
            return self.beneath.answer(jobs, under, decided);
        };
        Ok(written
            .into_iter()
            .map(|answer| Answer {
                nll: match answer.gold.tokens.len() {
                    0 => None,
                    count => Some(-answer.gold.sum() / count as f64),
                },
                tokens: answer.tokens,
            })
            .collect())
    }

    fn cross_entropy(&self, sample: &Sample, under: &Under) -> anyhow::Result<f64> {
        self.beneath.cross_entropy(sample, under)
    }

    fn divergence(&self, sample: &Sample, under: &Under) -> anyhow::Result<f64> {
        self.beneath.divergence(sample, under)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use moa_lm::{Cpu, KvPrecision, Lm};
    use moa_mask::{HeadMask, ModelMasks};

    use super::*;
    use crate::evaluate::scorer::LmScorer;
    use crate::source::Source;

    /// How far each of `written` is below the model's best token after the same text, in parts of the largest logit.
    fn below_best(lm: &Lm<Cpu>, under: &Under, prompt: &[u32], written: &[u32]) -> Vec<f32> {
        lm.set_kv_precision(under.kv);
        let text: Vec<u32> = prompt.iter().chain(written).copied().collect();
        let logits = lm.logits(&text, Some(&under.masks), &()).unwrap();
        lm.set_kv_precision(KvPrecision::Full);
        let vocab = lm.config().vocab_size as usize;
        let rows = logits.chunks(vocab).skip(prompt.len() - 1);
        rows.zip(written)
            .map(|(row, &id)| {
                let best = row.iter().copied().fold(f32::MIN, f32::max);
                let largest = row.iter().fold(0.0f32, |top, x| top.max(x.abs()));
                (best - row[id as usize]) / largest
            })
            .collect()
    }

    #[test]
    #[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
    fn batches_answer_as_the_cpu_does() {
        let folder = std::env::var_os("MOA_FIXTURES").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"),
            Into::into,
        );
        let source = Source::open(&folder.join("tiny-llama")).unwrap();
        let lm = Lm::load(Cpu, &source, &()).unwrap();
        let cancel = AtomicBool::new(false);
        let alone = LmScorer::new(&lm, &cancel);
        let gpu = Arc::new(Gpu::open(0, None).unwrap());
        let beneath = Box::new(LmScorer::new(&lm, &cancel));
        let batched = BatchScorer::new(beneath, gpu, &source, &cancel);
        let vocab = source.config().vocab_size;
        let prompts: Vec<Vec<u32>> = (0..5u32)
            .map(|seed| {
                (0..90 + 7 * seed)
                    .map(|i| (i * 37 + seed * 11 + i * i) % vocab)
                    .collect()
            })
            .collect();
        let jobs: Vec<Job<'_>> = prompts
            .iter()
            .map(|prompt| Job {
                prompt,
                gold: &prompt[..9],
                max_new: 12,
            })
            .collect();
        let shape = (
            source.config().layers as usize,
            source.config().kv_heads as usize,
        );
        // Two logits may each be off by what the engine's own tests allow.
        for (masks, kv, allowed) in [
            (ModelMasks::dense(shape.0, shape.1), KvPrecision::Full, 0.12),
            (
                ModelMasks::uniform(shape.0, shape.1, HeadMask::from_span(40, 8)),
                KvPrecision::Int8,
                0.3,
            ),
        ] {
            let under = Under {
                masks,
                context: 160,
                kv,
            };
            let expected = alone.answer(&jobs, &under, &|_, _| false).unwrap();
            let answers = batched.answer(&jobs, &under, &|_, _| false).unwrap();
            assert!(matches!(
                &*batched.state.borrow(),
                State::Loaded(_, Some(_))
            ));
            for ((answer, expected), prompt) in answers.iter().zip(&expected).zip(&prompts) {
                let (nll, wanted) = (answer.nll.unwrap(), expected.nll.unwrap());
                assert!((nll - wanted).abs() < 0.2, "{nll} {wanted}");
                let ended = answer.tokens.len() < 12;
                assert!(!ended || !source.config().eos.is_empty());
                for below in below_best(&lm, &under, prompt, &answer.tokens) {
                    assert!(below <= allowed, "{below} {kv:?}");
                }
                // Tokens that have nothing to do with it are seen.
                let other: Vec<u32> = (0..12).map(|i| (prompt[i] + 1) % vocab).collect();
                let wrong = below_best(&lm, &under, prompt, &other);
                assert!(wrong.iter().any(|&below| below > allowed));
            }
        }
    }
}
