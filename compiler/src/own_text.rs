//! A text that the dense model writes itself: calibration in the model's own words, without data.
//!
//! Books of several chapters, each chapter an answer to a request of its own, drawn at temperature 1: what a language model is certain of
//! on its own text is as certain as it is in use. The people of a book recur in its chapters, so that far tokens help. On a CUDA
//! device many chapters are written at once.

use std::sync::Arc;

use moa_cuda_engine::{Engine, EngineOptions, Gpu, Model as Weights};
use moa_lm::{Device, Lm, draw};
use moa_mask::KvFormat;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::calibrate::own::{CHAPTERS, request};
use crate::calibrate::{CalibrationError, prompt_ids, seeded};
use crate::device::Model;
use crate::hint::Told;
use crate::interrupt;
use crate::pipeline::Opened;
use crate::printer::Printer;

/// Tokens of the text that a search calibrates with.
pub(crate) const TOKENS: usize = 1 << 18;
/// What its tokens are drawn at.
pub(crate) const TEMPERATURE: f32 = 1.0;
/// Changes whenever the text for a given model and seed does.
const VERSION: &str = "moa own text 1";
/// Tokens of a request and its chapter.
const CONTEXT: u32 = 1024;
/// Chapters at once on a GPU.
const BATCH: usize = 16 * CHAPTERS;
/// Tokens of all requests that are read at once.
const CHUNK: usize = 4096;

/// A chapter that is being written.
struct Chapter {
    prompt: Vec<u32>,
    written: Vec<u32>,
    rng: ChaCha8Rng,
    temperature: f32,
    done: bool,
}

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnSpec {
    /// Tokens, at least.
    pub(crate) tokens: usize,
    /// Above 0.
    pub(crate) temperature: f32,
    pub(crate) seed: u64,
}

impl Chapter {
    /// Draws the next token. A text that ended takes any token, and none of them counts.
    fn next(&mut self, logits: &[f32], room: usize, eos: &[u32]) -> u32 {
        let id = draw(logits, self.temperature, self.rng.random());
        self.done |= eos.contains(&id);
        if !self.done {
            self.written.push(id);
            self.done = self.written.len() >= room;
        }
        id
    }
}

/// A text. The same model on the same device and the same seed write the same.
pub(crate) fn write(opened: &Opened, spec: &OwnSpec, printer: &Printer) -> anyhow::Result<String> {
    if !(spec.temperature > 0.0 && spec.temperature.is_finite()) {
        return Err(Told::new(
            format!(
                "the temperature is {}, expected more than 0",
                spec.temperature
            ),
            "use for example --temperature 1",
        )
        .into());
    }
    let lm = opened.lm(printer)?;
    opened
        .stages
        .time("own text", || written(opened, lm, spec, printer))
}

fn written(
    opened: &Opened,
    lm: &Model,
    spec: &OwnSpec,
    printer: &Printer,
) -> anyhow::Result<String> {
    let &OwnSpec {
        tokens,
        temperature,
        seed,
    } = spec;
    let tokenizer = opened.source.tokenizer();
    let tokenizer = tokenizer.ok_or(CalibrationError::NoTokenizer { line: None })?;
    let eos = &opened.source.config().eos;
    let bar = printer.bar("writing a text", tokens as u64);
    let (mut text, mut count, mut first) = (String::new(), 0, 0);
    let mut engine = match lm {
        Model::Cpu(_) => None,
        Model::Cuda(lm) => Some(engine(lm.device().gpu().clone(), opened)?),
    };
    while count < tokens {
        let batch = if engine.is_some() { BATCH } else { 1 };
        let mut chapters = (first..first + batch)
            .map(|index| {
                let rng = seeded(VERSION, "chapter", CONTEXT, seed, index);
                let request = request(seeded(VERSION, "book", 0, seed, index / CHAPTERS), index);
                let mut prompt = prompt_ids(tokenizer, &[("user", request.as_str())])?;
                prompt.truncate(CONTEXT as usize / 2);
                Ok(Chapter {
                    prompt,
                    written: Vec::new(),
                    rng,
                    temperature,
                    done: false,
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        match (&mut engine, lm) {
            (Some(engine), _) => together(engine, &mut chapters, eos)?,
            (None, Model::Cpu(lm)) => alone(lm, &mut chapters[0], eos)?,
            (None, Model::Cuda(lm)) => alone(lm, &mut chapters[0], eos)?,
        }
        first += batch;
        let before = count;
        for chapter in &chapters {
            count += chapter.written.len();
            text += tokenizer.decode(&chapter.written, true)?.trim();
            text += "\n\n";
        }
        bar.inc((count - before) as u64);
        if count == before {
            return Err(Told::new(
                "the model answers a request for a text with nothing",
                "give a text with --text FILE",
            )
            .into());
        }
    }
    bar.finish_and_clear();
    Ok(text)
}

fn engine(gpu: Arc<Gpu>, opened: &Opened) -> anyhow::Result<Engine> {
    let weights = Weights::load(gpu, &opened.source)?;
    let options = EngineOptions {
        context: CONTEXT,
        batch: BATCH,
        chunk: CHUNK,
        format: KvFormat::Sixteen,
    };
    Ok(Engine::new(Arc::new(weights), None, options)?)
}

/// Writes chapters to their ends, a token of each at a time.
fn together(engine: &mut Engine, chapters: &mut [Chapter], eos: &[u32]) -> anyhow::Result<()> {
    let prompts: Vec<&[u32]> = chapters.iter().map(|one| &one.prompt[..]).collect();
    // Texts that ended are fed on with the others, so none may reach the context's end before they do.
    let longest = prompts.iter().map(|prompt| prompt.len()).max();
    let room = (CONTEXT as usize).saturating_sub(longest.unwrap_or(0));
    let mut logits = engine.prefill(&prompts)?;
    loop {
        stop_if_asked()?;
        let ids: Vec<u32> = chapters
            .par_iter_mut()
            .zip(&logits)
            .map(|(one, logits)| one.next(logits, room, eos))
            .collect();
        if chapters.iter().all(|one| one.done) {
            return Ok(());
        }
        logits = engine.feed(&ids)?;
    }
}

/// Writes one chapter to its end.
fn alone<D: Device>(lm: &Lm<D>, chapter: &mut Chapter, eos: &[u32]) -> anyhow::Result<()> {
    let mut session = lm.session(None, CONTEXT)?;
    let room = (CONTEXT as usize).saturating_sub(chapter.prompt.len());
    let mut logits = session.prefill_watched(&chapter.prompt, interrupt::flag())?;
    loop {
        stop_if_asked()?;
        let id = chapter.next(&logits, room, eos);
        if chapter.done {
            return Ok(());
        }
        logits = session.decode(id)?;
    }
}

fn stop_if_asked() -> anyhow::Result<()> {
    if interrupt::check(interrupt::flag()).is_break() {
        return Err(Told::new("interrupted", "run the same command again").into());
    }
    Ok(())
}
