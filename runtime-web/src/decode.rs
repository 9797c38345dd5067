//! Decoding: batches of tokens that the device chooses and feeds to itself, several of them in flight.
//!
//! A batch is one submit: so many times the model and a choice, in one compute pass, then a copy of the ids and of the
//! step state to a read-back buffer of its own. The next batch goes on from what the device has, so the host waits for
//! ids while the device already works on more. All tokens in flight together never exceed the slack, so that what the
//! caller does not keep can be taken back exactly.

use bytemuck::bytes_of;
use moa_mask::SLACK;
use moa_mask::abi::{IN_PROMPT, MAX_STOPS, StepState};

use crate::buffers::MAX_DECODE_BATCH;
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::sampler::Sampler;
use crate::signal::{Receiver, signal};

/// A batch that was submitted and not read yet.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Which read-back buffer its ids come back in.
    staging: usize,
    count: u32,
    /// [`Engine::longest`] before it.
    longest: u32,
    submission: wgpu::SubmissionIndex,
    mapped: Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
}

impl Engine {
    /// Tokens that end a text: once one is chosen, the device does nothing more until the next call that feeds it, and
    /// [`collect`](Self::collect) gives the tokens up to and including it. At most [`MAX_STOPS`].
    pub fn set_stop(&mut self, ids: &[u32]) -> Result<()> {
        self.check_ids(ids)?;
        if ids.len() > MAX_STOPS as usize {
            return Err(EngineError::BadArgument {
                what: "number of stop tokens",
                got: ids.len().to_string(),
                expected: "at most 15",
            });
        }
        let mut words = vec![u32::try_from(ids.len()).unwrap_or(0)];
        words.extend_from_slice(ids);
        self.gpu
            .queue
            .write_buffer(&self.buffers.stops, 0, bytemuck::cast_slice(&words));
        Ok(())
    }

    /// Submits a batch of `count` tokens and returns at once. Batches come back in order by
    /// [`collect`](Self::collect); until all are back, nothing else can be asked of the engine.
    pub fn begin(&mut self, count: u32, sampler: &Sampler) -> Result<()> {
        self.ready()?;
        let in_flight: u32 = self.flights.iter().map(|flight| flight.count).sum();
        if count == 0 || count > MAX_DECODE_BATCH || in_flight + count > SLACK {
            return Err(EngineError::BadArgument {
                what: "number of tokens to decode",
                got: format!("{count}, with {in_flight} in flight"),
                expected: "1 to 32, and no more than 64 in flight",
            });
        }
        let staging = (0..self.buffers.ids_staging.len())
            .find(|staging| self.flights.iter().all(|flight| flight.staging != *staging));
        let Some(staging) = staging else {
            return Err(EngineError::BadArgument {
                what: "number of batches in flight",
                got: self.flights.len().to_string(),
                expected: "collect one first",
            });
        };
        let first = self.flights.is_empty();
        if sampler.penalizes() && !first && !self.counted {
            return Err(EngineError::BadArgument {
                what: "penalties",
                got: "after batches in flight without any".into(),
                expected: "collect those first",
            });
        }
        // A token in flight goes into the cache first; otherwise the first token comes from logits that are there.
        let chooses_first = first && self.pending.is_none();
        let fed = count - u32::from(chooses_first);
        self.check_room(fed)?;
        if chooses_first && !self.has_logits {
            return Err(EngineError::NoLogits);
        }
        if first {
            self.feed_pending();
        }
        let dim = self.setup.config().vocab_size;
        if !sampler.is_greedy() {
            if sampler.penalizes() && !self.counted && first {
                self.write_counts();
            }
            let params = sampler.params(dim);
            self.gpu
                .queue
                .write_buffer(&self.buffers.sampling, 0, bytes_of(&params));
        }
        // Only the sampling kernel goes on counting.
        self.counted = sampler.penalizes();
        let choice = if sampler.is_greedy() {
            &self.program.argmax[..]
        } else {
            std::slice::from_ref(&self.program.sample)
        };

        let mut encoder = self.encoder();
        let step_at = std::mem::offset_of!(StepState, step) as u64;
        encoder.clear_buffer(&self.buffers.state, step_at, Some(4));
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let choose = |pass: &mut wgpu::ComputePass<'_>| {
                choice.iter().for_each(|step| step.encode(pass, 1));
            };
            if chooses_first {
                choose(&mut pass);
            }
            for _ in 0..fed {
                self.encode_token(&mut pass);
                choose(&mut pass);
            }
        }
        let buffer = &self.buffers.ids_staging[staging];
        let state_bytes = size_of::<StepState>() as u64;
        encoder.copy_buffer_to_buffer(&self.buffers.state, 0, buffer, 0, state_bytes);
        let bytes = u64::from(count) * 4;
        encoder.copy_buffer_to_buffer(&self.buffers.ids, 0, buffer, state_bytes, bytes);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        let (sender, mapped) = signal();
        buffer.map_async(wgpu::MapMode::Read, ..state_bytes + bytes, move |result| {
            sender.send(result);
        });
        let longest = self.longest;
        self.advance(fed);
        self.has_logits = true;
        self.flights.push_back(Flight {
            staging,
            count,
            longest,
            submission,
            mapped,
        });
        Ok(())
    }

    /// The tokens of the oldest batch. Fewer than were asked for when a stop token was chosen: it is the last one, and
    /// the batches after it are dropped, for nothing happened in them. The last token of the last batch is pending: not
    /// in the cache until the next call feeds it.
    pub async fn collect(&mut self) -> Result<Vec<u32>> {
        let (state, ids) = self.land().await?;
        self.history.extend_from_slice(&ids);
        if state.stopped != 0 {
            while !self.flights.is_empty() {
                let _ = self.land().await?;
            }
        }
        if self.flights.is_empty() {
            self.pending = ids.last().copied();
        }
        Ok(ids)
    }

    /// Batches that were begun and not collected.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Waits for the oldest batch and takes its state and ids. It stays in line until then, so that a caller who goes
    /// away in between leaves nothing behind that is not accounted for.
    async fn land(&mut self) -> Result<(StepState, Vec<u32>)> {
        let Some(flight) = self.flights.front_mut() else {
            return Err(EngineError::BadArgument {
                what: "number of batches in flight",
                got: "0".into(),
                expected: "begin one first",
            });
        };
        self.gpu.pump_until(&flight.submission)?;
        let mapped = (&mut flight.mapped).await;
        let state_bytes = size_of::<StepState>();
        let bytes = state_bytes as u64 + u64::from(flight.count) * 4;
        let staging = &self.buffers.ids_staging[flight.staging];
        let data = self.gpu.take_mapped(staging, bytes, mapped)?;
        let longest = flight.longest;
        self.flights.pop_front();
        let state: StepState = bytemuck::pod_read_unaligned(&data[..state_bytes]);
        let mut ids: Vec<u32> = bytemuck::pod_collect_to_vec(&data[state_bytes..]);
        ids.truncate(state.step as usize);
        if state.stopped != 0 {
            // What the device did not take in: the rest of this batch, and those after it.
            self.len = state.start;
            self.longest = longest.max(state.start);
        }
        Ok((state, ids))
    }

    /// The next `count` tokens, each the one with the largest logit, in one submit. The last of them is pending:
    /// not in the cache until the next call feeds it.
    pub async fn decode(&mut self, count: u32) -> Result<Vec<u32>> {
        self.decode_sampled(count, &Sampler::greedy()).await
    }

    /// The same, chosen as `sampler` says.
    pub async fn decode_sampled(&mut self, count: u32, sampler: &Sampler) -> Result<Vec<u32>> {
        self.landed()?;
        self.begin(count, sampler)?;
        self.collect().await
    }

    /// The next token chosen by `sampler`, which becomes pending.
    pub async fn sample(&mut self, sampler: &Sampler) -> Result<u32> {
        let ids = self.decode_sampled(1, sampler).await?;
        ids.first().copied().ok_or(EngineError::NoLogits)
    }

    /// Logits after the last chosen token, `[vocab_size]`. Feeds a pending token first.
    pub async fn logits(&mut self) -> Result<Vec<f32>> {
        self.ready()?;
        self.landed()?;
        if self.pending.is_none() && !self.has_logits {
            return Err(EngineError::NoLogits);
        }
        let fed = u32::from(self.pending.is_some());
        self.check_room(fed)?;
        self.feed_pending();
        let mut encoder = self.encoder();
        if fed == 1 {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.encode_token(&mut pass);
        }
        let bytes = u64::from(self.setup.config().vocab_size) * 4;
        let staging = &self.buffers.logits_staging;
        encoder.copy_buffer_to_buffer(&self.buffers.logits, 0, staging, 0, bytes);
        self.gpu.queue.submit([encoder.finish()]);
        self.advance(fed);
        self.pending = None;
        self.has_logits = true;
        let data = self.gpu.read(&self.buffers.logits_staging, bytes).await?;
        Ok(bytemuck::pod_collect_to_vec(&data))
    }

    /// Puts other logits in the place of the next token's, for a caller who does not allow all tokens: one that is no
    /// finite number is never chosen.
    pub fn set_logits(&mut self, logits: &[f32]) -> Result<()> {
        self.ready()?;
        self.landed()?;
        let vocab = self.setup.config().vocab_size as usize;
        if logits.len() != vocab {
            return Err(EngineError::BadArgument {
                what: "number of logits",
                got: logits.len().to_string(),
                expected: "the vocabulary's",
            });
        }
        if !self.has_logits || self.pending.is_some() {
            return Err(EngineError::NoLogits);
        }
        self.gpu
            .queue
            .write_buffer(&self.buffers.logits, 0, bytemuck::cast_slice(logits));
        Ok(())
    }

    /// Makes `id`, chosen by the caller from [`logits`](Self::logits), the pending token.
    pub fn choose(&mut self, id: u32) -> Result<()> {
        self.ready()?;
        self.landed()?;
        self.check_ids(&[id])?;
        if !self.has_logits {
            return Err(EngineError::NoLogits);
        }
        self.history.truncate(self.len as usize);
        self.history.push(id);
        self.counted = false;
        self.pending = Some(id);
        Ok(())
    }

    /// Fails while batches are in flight.
    pub(crate) fn landed(&self) -> Result<()> {
        if self.flights.is_empty() {
            return Ok(());
        }
        Err(EngineError::BadArgument {
            what: "number of batches in flight",
            got: self.flights.len().to_string(),
            expected: "0: collect them first",
        })
    }

    /// Forgets the batches in flight; what they do on the device happens before anything that is submitted later.
    pub(crate) fn forget_flights(&mut self) {
        for flight in self.flights.drain(..) {
            self.buffers.ids_staging[flight.staging].unmap();
        }
    }

    /// What is in the text, for penalties: the prompt, and how often each token was generated since.
    fn write_counts(&self) {
        let mut counts = vec![0u32; self.setup.config().vocab_size as usize];
        for (index, &id) in self.history.iter().enumerate() {
            let Some(count) = counts.get_mut(id as usize) else {
                continue;
            };
            if index < self.prompt_len {
                *count |= IN_PROMPT;
            } else {
                *count += 1;
            }
        }
        self.gpu
            .queue
            .write_buffer(&self.buffers.counts, 0, bytemuck::cast_slice(&counts));
    }
}
