//! Texts: greedy generation of whole batches, likelihoods of given continuations, and logits for callers that choose tokens themselves.

use moa_kernels::{Buffer, ChunkPart};
use moa_lm::{LmError, logit_rows};
use moa_mask::SLACK;

use crate::Result;
use crate::engine::{Activations, Engine, STOPS};

/// Tokens that may be decoded before the host looks whether any request still runs.
const LOOK_EVERY: usize = 16;

/// How likely a continuation was, token by token.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihood {
    /// Natural log-likelihood of each of its tokens.
    pub tokens: Vec<f32>,
    /// Whether greedy decoding would have written exactly these tokens.
    pub greedy: bool,
}

impl Likelihood {
    /// Log-likelihood of the whole continuation.
    pub fn sum(&self) -> f64 {
        self.tokens.iter().copied().map(f64::from).sum()
    }
}

/// A prompt to answer, and a continuation whose likelihood is wanted besides.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is read.
    pub prompt: &'a [u32],
    /// The continuation; may be empty, has at most 64 tokens.
    pub gold: &'a [u32],
    /// Tokens to write at most.
    pub max_tokens: usize,
}

/// What came of a [`Question`].
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Tokens written greedily after the prompt.
    pub tokens: Vec<u32>,
    /// Of the question's gold tokens.
    pub gold: Likelihood,
}

/// Whether an answer, by its number and its tokens so far, may end.
pub type Decided<'a> = dyn Fn(usize, &[u32]) -> bool + 'a;

/// What a request reads: a prompt, and a continuation that is scored and, but for its last token, read too.
#[derive(Debug, Clone, Copy)]
struct Text<'a> {
    prompt: &'a [u32],
    gold: &'a [u32],
}

impl Text<'_> {
    fn len(&self) -> usize {
        self.prompt.len() + self.gold.len().saturating_sub(1)
    }

    fn id(&self, position: usize) -> u32 {
        let gold = || self.gold[position - self.prompt.len()];
        self.prompt.get(position).copied().unwrap_or_else(gold)
    }

    /// The token that should follow the one at `position`, if it is scored.
    fn target(&self, position: usize) -> Option<u32> {
        let at = (position + 1).checked_sub(self.prompt.len())?;
        self.gold.get(at).copied()
    }
}

/// A row of a chunk whose next token is scored.
#[derive(Debug, Clone, Copy)]
struct Scored {
    row: u32,
    target: u32,
    request: usize,
}

/// Cuts texts of `lens` tokens into chunks of at most `chunk` tokens, each full but the last, in the order of the texts.
fn chunks(lens: &[usize], chunk: usize) -> Vec<Vec<ChunkPart>> {
    let mut all = vec![Vec::new()];
    let mut room = chunk;
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    for (request, &len) in lens.iter().enumerate() {
        let mut start = 0;
        while start < len {
            if room == 0 {
                all.push(Vec::new());
                room = chunk;
            }
            let taken = room.min(len - start);
            if let Some(last) = all.last_mut() {
                last.push(ChunkPart {
                    request: count(request),
                    start: count(start),
                    len: count(taken),
                });
            }
            start += taken;
            room -= taken;
        }
    }
    all.retain(|parts| !parts.is_empty());
    all
}

impl Engine {
    /// Refuses empty texts, texts longer than the context, and tokens that the model does not know.
    fn check(&self, text: &[u32]) -> Result<()> {
        if text.is_empty() {
            return Err(LmError::NoTokens.into());
        }
        let context = self.options.context;
        if text.len() > context as usize {
            return Err(LmError::ContextFull {
                len: 0,
                more: text.len(),
                context,
            }
            .into());
        }
        let vocab_size = self.model.config().vocab_size;
        match text.iter().position(|&id| id >= vocab_size) {
            None => Ok(()),
            Some(position) => Err(LmError::BadToken {
                id: text[position],
                position,
                vocab_size,
            }
            .into()),
        }
    }

    /// Reads `texts` into the first requests' caches, scores what follows their prompts, and leaves the logits after each prompt in the
    /// first rows of `self.logits`. What was in the caches before is forgotten.
    fn read(&mut self, texts: &[Text<'_>]) -> Result<Vec<Likelihood>> {
        if texts.is_empty() || texts.len() > self.options.batch {
            return Err(LmError::BadOption {
                what: "number of texts",
                got: texts.len().to_string(),
                expected: "1 to the engine's batch",
            }
            .into());
        }
        for text in texts {
            self.check(text.prompt)?;
            if let Some((last, rest)) = text.gold.split_last() {
                let ids: Vec<u32> = text.prompt.iter().chain(rest).copied().collect();
                self.check(&ids)?;
                self.check(&[*last])?;
            }
        }
        self.lens.clear();
        let mut likelihoods: Vec<Likelihood> = texts
            .iter()
            .map(|text| Likelihood {
                tokens: Vec::with_capacity(text.gold.len()),
                greedy: true,
            })
            .collect();
        let lens: Vec<usize> = texts.iter().map(Text::len).collect();
        for parts in chunks(&lens, self.options.chunk) {
            let (mut ids, mut ends, mut requests) = (Vec::new(), Vec::new(), Vec::new());
            let mut scored = Vec::new();
            for part in &parts {
                let request = part.request as usize;
                let text = &texts[request];
                for position in part.start as usize..(part.start + part.len) as usize {
                    let row = u32::try_from(ids.len()).unwrap_or(u32::MAX);
                    if position + 1 == text.prompt.len() {
                        ends.push(row);
                        requests.push(part.request);
                    }
                    if let Some(target) = text.target(position) {
                        scored.push(Scored {
                            row,
                            target,
                            request,
                        });
                    }
                    ids.push(text.id(position));
                }
            }
            let x = self.chunk(&parts, &ids)?;
            // Rows that end prompts wait in the step's residual stream.
            if !ends.is_empty() {
                let last = self.picked(&x, &ends)?;
                let (gpu, hidden) = (&self.model.gpu, self.model.config.hidden_dim as usize);
                let requests = gpu.upload(&requests)?;
                self.kernels
                    .rows
                    .scatter(gpu, &last, hidden, &requests, &mut self.step.x)?;
            }
            self.score(&x, &scored, &mut likelihoods)?;
        }
        let Activations { x, normed, .. } = &mut self.step;
        self.kernels
            .head(&self.model, x, normed, &mut self.logits)?;
        self.lens = texts
            .iter()
            .map(|text| u32::try_from(text.prompt.len()).unwrap_or(u32::MAX))
            .collect();
        Ok(likelihoods)
    }

    /// Some rows of a chunk's residual stream.
    fn picked(&self, x: &Buffer<f32>, rows: &[u32]) -> Result<Buffer<f32>> {
        let (gpu, hidden) = (&self.model.gpu, self.model.config.hidden_dim as usize);
        let mut picked = gpu.zeros(rows.len() * hidden)?;
        let rows = gpu.upload(rows)?;
        self.kernels
            .rows
            .gather_full(gpu, x, hidden, &rows, &mut picked)?;
        Ok(picked)
    }

    /// Appends the log-likelihoods of `scored` rows' targets.
    fn score(
        &self,
        x: &Buffer<f32>,
        scored: &[Scored],
        likelihoods: &mut [Likelihood],
    ) -> Result<()> {
        let (gpu, config) = (&self.model.gpu, &self.model.config);
        let vocab = config.vocab_size as usize;
        for scored in scored.chunks(logit_rows(config.vocab_size)) {
            let rows: Vec<u32> = scored.iter().map(|scored| scored.row).collect();
            let targets: Vec<u32> = scored.iter().map(|scored| scored.target).collect();
            let picked = self.picked(x, &rows)?;
            let mut normed = gpu.zeros(picked.len())?;
            let mut logits = gpu.zeros::<f32>(rows.len() * vocab)?;
            self.kernels
                .head(&self.model, &picked, &mut normed, &mut logits)?;
            let mut tokens = gpu.zeros::<f32>(rows.len())?;
            let mut greedy = gpu.zeros::<u32>(rows.len())?;
            let targets = gpu.upload(&targets)?;
            self.kernels
                .argmax
                .score(gpu, &logits, &targets, &mut tokens, &mut greedy)?;
            let (tokens, greedy) = (gpu.download(&tokens)?, gpu.download(&greedy)?);
            for ((scored, token), greedy) in scored.iter().zip(tokens).zip(greedy) {
                let likelihood = &mut likelihoods[scored.request];
                likelihood.tokens.push(token);
                likelihood.greedy &= greedy == 1;
            }
        }
        Ok(())
    }

    /// The logits of the requests that are being served, `[vocab_size]` each.
    fn download_logits(&self) -> Result<Vec<Vec<f32>>> {
        let vocab = self.model.config().vocab_size as usize;
        let all = self.gpu().download(&self.logits)?;
        Ok(all
            .chunks(vocab)
            .take(self.lens.len())
            .map(<[f32]>::to_vec)
            .collect())
    }

    /// Begins `texts` anew, one a request, and gives the logits after each.
    ///
    /// # Errors
    /// [`LmError::NoTokens`], [`LmError::ContextFull`], [`LmError::BadToken`], [`LmError::BadOption`] for more texts than requests, and the
    /// device's, as of everything here.
    pub fn prefill(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let texts: Vec<Text<'_>> = texts
            .iter()
            .map(|prompt| Text { prompt, gold: &[] })
            .collect();
        self.read(&texts)?;
        self.download_logits()
    }

    /// Appends a token to every text that [`prefill`](Self::prefill) began, and gives the logits after each.
    ///
    /// # Errors
    /// See [`prefill`](Self::prefill); [`LmError::BadOption`] for another number of tokens than of texts.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        if ids.len() != self.lens.len() {
            return Err(LmError::BadOption {
                what: "number of tokens",
                got: ids.len().to_string(),
                expected: "one for each text",
            }
            .into());
        }
        for &id in ids {
            self.check(&[id])?;
        }
        let context = self.options.context;
        if let Some(&len) = self.lens.iter().find(|&&len| len >= context) {
            return Err(LmError::ContextFull {
                len,
                more: 1,
                context,
            }
            .into());
        }
        for len in &mut self.lens {
            *len += 1;
        }
        let model = self.model.clone();
        let mut lens = self.lens.clone();
        lens.resize(self.options.batch, 0);
        model.gpu.write(&mut self.state.lens, 0, &lens)?;
        model.gpu.write(&mut self.state.ids, 0, ids)?;
        self.token()?;
        self.download_logits()
    }

    /// Writes on greedily after each of any number of prompts, as many at once as the engine has requests: at most `max_tokens` tokens
    /// each, fewer where one of `stop` comes (which is not part of the text) or the context ends.
    ///
    /// # Errors
    /// See [`prefill`](Self::prefill); [`LmError::BadOption`] for more than 16 stop tokens.
    pub fn generate_batch(
        &mut self,
        prompts: &[Vec<u32>],
        max_tokens: usize,
        stop: &[u32],
    ) -> Result<Vec<Vec<u32>>> {
        let questions: Vec<Question<'_>> = prompts
            .iter()
            .map(|prompt| Question {
                prompt,
                gold: &[],
                max_tokens,
            })
            .collect();
        let answers = self.answer_batch(&questions, stop, None)?;
        Ok(answers.into_iter().map(|answer| answer.tokens).collect())
    }

    /// Answers any number of questions, as many at once as the engine has requests: each prompt is read once, its gold tokens with it,
    /// which are then taken back. Every 16 tokens `decided`, if there is one, may end an answer: it is told the number of the question and the
    /// tokens so far.
    /// See [`generate_batch`](Self::generate_batch).
    ///
    /// # Errors
    /// See [`generate_batch`](Self::generate_batch); [`LmError::BadOption`] for more than 64 gold tokens.
    pub fn answer_batch(
        &mut self,
        questions: &[Question<'_>],
        stop: &[u32],
        decided: Option<&Decided<'_>>,
    ) -> Result<Vec<Answer>> {
        if stop.len() > STOPS {
            return Err(LmError::BadOption {
                what: "number of stop tokens",
                got: stop.len().to_string(),
                expected: "at most 16",
            }
            .into());
        }
        if let Some(question) = questions.iter().find(|q| q.gold.len() > SLACK as usize) {
            return Err(LmError::BadOption {
                what: "number of gold tokens",
                got: question.gold.len().to_string(),
                expected: "at most 64, as many as can be taken back",
            }
            .into());
        }
        let mut answers = Vec::with_capacity(questions.len());
        for questions in questions.chunks(self.options.batch) {
            let first = answers.len();
            let texts: Vec<Text<'_>> = questions
                .iter()
                .map(|question| Text {
                    prompt: question.prompt,
                    gold: question.gold,
                })
                .collect();
            let gold = self.read(&texts)?;
            let limits: Vec<usize> = questions.iter().map(|q| q.max_tokens).collect();
            let of_this_batch = decided.map(|decided| {
                move |request: usize, tokens: &[u32]| decided(first + request, tokens)
            });
            let written = self.write_on(
                &limits,
                stop,
                of_this_batch.as_ref().map(|decided| decided as _),
            )?;
            answers.extend(
                written
                    .into_iter()
                    .zip(gold)
                    .map(|(tokens, gold)| Answer { tokens, gold }),
            );
        }
        Ok(answers)
    }

    /// Greedy tokens after the prompts that were just read, at most `most` of each; `decided` may end each earlier.
    fn write_on(
        &mut self,
        most: &[usize],
        stop: &[u32],
        decided: Option<&Decided<'_>>,
    ) -> Result<Vec<Vec<u32>>> {
        let model = self.model.clone();
        let gpu = &model.gpu;
        let (batch, context) = (self.options.batch, self.options.context as usize);
        let count = self.lens.len();
        // The last token written is never fed, so it needs no room.
        let limits: Vec<u32> = self
            .lens
            .iter()
            .zip(most)
            .map(|(&len, &most)| {
                let room = context - len as usize + 1;
                u32::try_from(most.min(room)).unwrap_or(u32::MAX)
            })
            .collect();
        // Who may write nothing is idle from the start.
        let lens: Vec<u32> = self
            .lens
            .iter()
            .zip(&limits)
            .map(|(&len, &limit)| if limit == 0 { 0 } else { len })
            .collect();
        let padded = |values: &[u32]| {
            let mut values = values.to_vec();
            values.resize(batch, 0);
            values
        };
        let mut stops = [u32::MAX; STOPS];
        stops[..stop.len()].copy_from_slice(stop);
        gpu.write(&mut self.state.lens, 0, &padded(&lens))?;
        gpu.write(&mut self.state.ids, 0, &padded(&[]))?;
        gpu.write(&mut self.state.written, 0, &padded(&[]))?;
        gpu.write(&mut self.state.limits, 0, &padded(&limits))?;
        gpu.write(&mut self.state.stops, 0, &stops)?;
        let state = &mut self.state;
        self.kernels.argmax.step(gpu, &self.logits, state)?;
        let most = limits.iter().copied().max().unwrap_or(0) as usize;
        let mut steps = 1;
        while steps < most && self.any_runs(decided)? {
            for _ in 0..LOOK_EVERY.min(most - steps) {
                self.advance()?;
                steps += 1;
            }
        }
        self.lens.clear();
        let mut written = self.written()?;
        written.truncate(count);
        Ok(written)
    }

    /// What every request has written so far.
    fn written(&self) -> Result<Vec<Vec<u32>>> {
        let lens = self.gpu().download(&self.state.written)?;
        let tokens = self.gpu().download(&self.state.tokens)?;
        let texts = tokens.chunks(self.options.context as usize).zip(lens);
        Ok(texts
            .map(|(tokens, len)| tokens[..len as usize].to_vec())
            .collect())
    }

    /// Whether any request writes on, once those that are decided have been made idle.
    fn any_runs(&mut self, decided: Option<&Decided<'_>>) -> Result<bool> {
        let mut lens = self.gpu().download(&self.state.lens)?;
        let running = |lens: &[u32]| lens.iter().any(|&len| len > 0);
        let Some(decided) = decided.filter(|_| running(&lens)) else {
            return Ok(running(&lens));
        };
        let written = self.written()?;
        let mut changed = false;
        for (request, len) in lens.iter_mut().enumerate().filter(|(_, len)| **len > 0) {
            if decided(request, &written[request]) {
                *len = 0;
                changed = true;
            }
        }
        if changed {
            let model = self.model.clone();
            model.gpu.write(&mut self.state.lens, 0, &lens)?;
        }
        Ok(running(&lens))
    }

    /// How likely each continuation is after its prompt, `(prompt, continuation)`, teacher-forced. Any number of texts; prompts have at
    /// least one token.
    ///
    /// # Errors
    /// See [`prefill`](Self::prefill).
    pub fn log_likelihoods(&mut self, texts: &[(Vec<u32>, Vec<u32>)]) -> Result<Vec<Likelihood>> {
        let mut all = Vec::with_capacity(texts.len());
        for texts in texts.chunks(self.options.batch) {
            let texts: Vec<Text<'_>> = texts
                .iter()
                .map(|(prompt, gold)| Text { prompt, gold })
                .collect();
            all.extend(self.read(&texts)?);
            // More may have been read than can be taken back.
            self.lens.clear();
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_full_and_cover_every_text_in_order() {
        for (lens, chunk) in [
            (vec![1, 1, 1], 2),
            (vec![10, 3, 7], 4),
            (vec![5], 100),
            (vec![64, 64], 64),
        ] {
            let all = chunks(&lens, chunk);
            let mut done = vec![0; lens.len()];
            for (index, parts) in all.iter().enumerate() {
                let rows: usize = parts.iter().map(|part| part.len as usize).sum();
                assert!(rows == chunk || index + 1 == all.len() && rows < chunk);
                for part in parts {
                    assert_eq!(part.start as usize, done[part.request as usize]);
                    done[part.request as usize] += part.len as usize;
                }
            }
            assert_eq!(done, lens);
        }
    }
}
