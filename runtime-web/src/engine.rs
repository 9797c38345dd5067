//! The engine: one context of one model on one device, driven token by token.
//!
//! It deliberately knows no tokenizer, no file and no JavaScript. Calls do one bounded piece of work each (a
//! prefill chunk, some decoded tokens), so that a caller can stop between any two of them. How an engine comes to be is
//! `create`'s business.

use std::collections::VecDeque;
use std::sync::Arc;

use bytemuck::bytes_of;
use moa_mask::SLACK;
use moa_mask::abi::StepState;
use moa_shaders::Variant;

use crate::buffers::{Buffers, Ledger};
use crate::decode::Flight;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::pipelines::Made;
use crate::portion::{Portion, clock};
use crate::program::{DecodeKernels, Program};
use crate::setup::Setup;
use crate::step::Step;
use crate::weights::WeightBuffers;

/// In the history: a token that came with a restored cache.
const UNKNOWN_TOKEN: u32 = u32::MAX;

/// One context of one model.
#[derive(Debug)]
pub struct Engine {
    pub(crate) gpu: Gpu,
    pub(crate) setup: Setup,
    /// Engines of the same model may read the same ones.
    pub(crate) weights: Arc<WeightBuffers>,
    pub(crate) buffers: Buffers,
    pub(crate) program: Program,
    pub(crate) made: Made,
    pub(crate) kernels: DecodeKernels,
    pub(crate) variant: Variant,
    pub(crate) ledger: Ledger,
    pub(crate) chunk: u32,
    pub(crate) portion: Portion,
    pub(crate) loaded: bool,
    /// Tokens in the cache.
    pub(crate) len: u32,
    /// The longest that the cache has been: what a rewind is measured from.
    pub(crate) longest: u32,
    /// Positions from which on some ring has overwritten something.
    pub(crate) unwrapped: u32,
    /// Whether the logits buffer belongs to the last token in the cache.
    pub(crate) has_logits: bool,
    /// A chosen token that is not in the cache yet.
    pub(crate) pending: Option<u32>,
    /// Batches that were submitted and not read yet.
    pub(crate) flights: VecDeque<Flight>,
    /// Tokens in the cache and the pending one, as far as they are known.
    pub(crate) history: Vec<u32>,
    /// How many of them were prefilled, the rest generated.
    pub(crate) prompt_len: usize,
    /// Whether the device's counts of tokens are those of the text.
    pub(crate) counted: bool,
}

impl Engine {
    /// Takes at most a chunk of tokens from the front of `ids` into the cache and returns how many, when the
    /// device is done with them. A pending token is dropped: put it in `ids` if it shall stay. There are logits
    /// once all of `ids` has been taken.
    pub async fn prefill(&mut self, ids: &[u32]) -> Result<usize> {
        self.ready()?;
        self.landed()?;
        self.check_ids(ids)?;
        let room = self.setup.context() - self.len;
        if ids.len() > room as usize {
            return Err(EngineError::ContextOverflow {
                len: self.len,
                more: ids.len(),
                context: self.setup.context(),
            });
        }
        let taken = ids.len().min(self.chunk as usize);
        let len = u32::try_from(taken).unwrap_or(self.chunk);
        if len == 0 {
            return Ok(0);
        }
        self.forget_from(self.len);
        self.has_logits = false;
        self.history.extend_from_slice(&ids[..taken]);
        self.prompt_len = self.history.len();
        self.gpu
            .queue
            .write_buffer(&self.buffers.tokens, 0, bytemuck::cast_slice(&ids[..taken]));
        self.write_state(len);
        let started = clock();
        let work = self.submit_chunk(len, taken == ids.len());
        // Before the wait: what was submitted will be in the cache even if nobody waits for it.
        self.advance(len);
        self.has_logits = taken == ids.len();
        self.gpu.done().await?;
        self.portion.took(work, clock() - started);
        Ok(taken)
    }

    /// Takes back the last `back` tokens of the cache, exactly as if they had never been there; a pending token is
    /// dropped as well. Afterwards something must be prefilled before the next token can be chosen.
    pub fn rewind(&mut self, back: u32) -> Result<()> {
        self.landed()?;
        let most = self.rewindable();
        if back > most {
            return Err(EngineError::RewindTooFar { back, most });
        }
        if back > 0 {
            self.len -= back;
            self.has_logits = false;
        }
        self.forget_from(self.len);
        Ok(())
    }

    /// Tokens that can be taken back exactly: the slack, or everything while no ring has overwritten anything.
    pub fn rewindable(&self) -> u32 {
        if self.longest <= self.unwrapped {
            return self.len;
        }
        (self.len + SLACK)
            .saturating_sub(self.longest)
            .min(self.len)
    }

    /// An empty context; weights stay.
    pub fn reset(&mut self) {
        self.forget_flights();
        self.forget_from(0);
        self.len = 0;
        self.longest = 0;
        self.has_logits = false;
    }

    /// The text ends at `len` tokens now; nothing is pending.
    pub(crate) fn forget_from(&mut self, len: u32) {
        self.pending = None;
        self.history.truncate(len as usize);
        self.prompt_len = self.prompt_len.min(self.history.len());
        self.counted = false;
    }

    /// Tokens in the cache, and the longest that it has been: what snapshots keep beside the rings.
    pub fn position(&self) -> (u32, u32) {
        (self.len, self.longest)
    }

    /// Says what restored rings hold: `len` tokens, and `longest` at the most so far.
    pub fn set_position(&mut self, len: u32, longest: u32) -> Result<()> {
        self.landed()?;
        self.check_position(len, longest)?;
        self.forget_from(0);
        self.hold_unknown(len);
        self.longest = longest;
        self.has_logits = false;
        Ok(())
    }

    /// Says which tokens the cache holds, for penalties: where it came from a copy, or where the last `answered` of them
    /// are an answer that goes on.
    pub fn set_text(&mut self, ids: &[u32], answered: u32) -> Result<()> {
        self.landed()?;
        self.check_ids(ids)?;
        if ids.len() != self.len as usize || answered > self.len {
            return Err(EngineError::BadArgument {
                what: "number of tokens in the text",
                got: format!("{}, {answered} of them an answer", ids.len()),
                expected: "as many as the cache holds",
            });
        }
        self.history = ids.to_vec();
        self.prompt_len = ids.len() - answered as usize;
        self.counted = false;
        Ok(())
    }

    /// The cache holds `len` tokens now. Which ones those beyond the history are is not known here: penalties do not see
    /// them.
    pub(crate) fn hold_unknown(&mut self, len: u32) {
        self.history.resize(len as usize, UNKNOWN_TOKEN);
        self.prompt_len = self.history.len();
        self.len = len;
    }

    /// Refuses a position that this engine cannot have had.
    pub(crate) fn check_position(&self, len: u32, longest: u32) -> Result<()> {
        if len > longest || longest > self.setup.context() {
            return Err(EngineError::BadArgument {
                what: "position",
                got: format!("{len} of {longest} tokens"),
                expected: "no more than the longest, and that within the context",
            });
        }
        Ok(())
    }

    /// Tokens in the cache, a pending one not counted.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chosen token that is not in the cache yet.
    pub fn pending(&self) -> Option<u32> {
        self.pending
    }

    /// Tokens that one prefill call takes at most.
    pub fn prefill_chunk(&self) -> u32 {
        self.chunk
    }

    /// Model, plan and context.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes on the device by what they are for; `kvCache` and `kvScratch` are what [`Setup::kv_report`] predicts. Weights
    /// are counted by the engine that they were made for alone.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Dispatches of one decoded token.
    pub fn dispatches_per_token(&self) -> usize {
        self.program.decode_dispatches()
    }

    /// The kernels of one decoded token, stems and variants in their order, its choice left out: for tests and benches.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn decode_labels(&self) -> Vec<&str> {
        let steps = self.program.token();
        steps.map(|step| step.label.as_str()).collect()
    }

    /// A layer's K and V rings: rows as [`Setup::kv_format`] says, laid out by `moa_mask::memory::slot_offsets` and
    /// `moa_mask::RingLayout`. For snapshots, and for tests that poison what no head may see.
    pub fn kv_buffers(&self, layer: usize) -> Option<(&wgpu::Buffer, &wgpu::Buffer)> {
        self.buffers
            .layers
            .get(layer)
            .map(|cache| (&cache.k, &cache.v))
    }

    /// Gives the memory back without waiting for the last reference to go; weights that others hold stay.
    pub fn destroy(&self) {
        if Arc::strong_count(&self.weights) == 1 {
            self.weights.destroy();
        }
        self.buffers.destroy();
    }

    pub(crate) fn ready(&self) -> Result<()> {
        if !self.loaded {
            self.weights.check_complete()?;
            return Err(EngineError::BadArgument {
                what: "the engine",
                got: "not ready".into(),
                expected: "finish_loading first",
            });
        }
        self.gpu.check()
    }

    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.setup.config().vocab_size;
        match ids.iter().position(|&id| id >= vocab) {
            Some(index) => Err(EngineError::BadToken {
                id: ids[index],
                index,
                vocab,
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_room(&self, more: u32) -> Result<()> {
        if more > self.setup.context() - self.len {
            return Err(EngineError::ContextOverflow {
                len: self.len,
                more: more as usize,
                context: self.setup.context(),
            });
        }
        Ok(())
    }

    pub(crate) fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("moa") })
    }

    pub(crate) fn write_state(&self, len: u32) {
        let state = StepState {
            start: self.len,
            len,
            step: 0,
            stopped: 0,
        };
        self.gpu
            .queue
            .write_buffer(&self.buffers.state, 0, bytes_of(&state));
    }

    /// Puts the pending token, if there is one, in flight; otherwise nothing.
    pub(crate) fn feed_pending(&self) {
        if let Some(id) = self.pending {
            self.gpu
                .queue
                .write_buffer(&self.buffers.tokens, 0, bytes_of(&id));
        }
        self.write_state(u32::from(self.pending.is_some()));
    }

    pub(crate) fn advance(&mut self, tokens: u32) {
        self.len += tokens;
        self.longest = self.longest.max(self.len);
    }

    pub(crate) fn encode_token(&self, pass: &mut wgpu::ComputePass<'_>) {
        for step in self.program.token() {
            step.encode(pass, 1);
        }
    }

    /// Submits a chunk in portions that stay short; how many multiplications it is.
    fn submit_chunk(&self, len: u32, with_logits: bool) -> u64 {
        let end = self.len + len;
        let shape = self.setup.heads();
        let layers = self
            .program
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| {
                let keys = self.setup.visible_keys(index, end)
                    * u64::from(shape.gqa_group() * shape.head_dim * 2);
                (&layer.prefill, u64::from(len) * (layer.weights + keys))
            });
        let config = self.setup.config();
        let head = u64::from(config.vocab_size) * u64::from(config.hidden_dim);
        let logits = with_logits.then_some((&self.program.logits, head));
        let most = self.portion.work();
        let mut portion: Vec<&Step> = self.program.embedding.iter().collect();
        let (mut work, mut all) = (0, 0);
        for (steps, more) in layers.chain(logits) {
            if work + more > most {
                self.submit_steps(&portion, len);
                portion.clear();
                work = 0;
            }
            if more > most {
                // A layer that is too much by itself goes dispatch by dispatch.
                for step in steps {
                    self.submit_steps(&[step], len);
                }
            } else {
                portion.extend(steps);
                work += more;
            }
            all += more;
        }
        self.submit_steps(&portion, len);
        all
    }

    fn submit_steps(&self, steps: &[&Step], len: u32) {
        if steps.is_empty() {
            return;
        }
        let mut encoder = self.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for step in steps {
                step.encode(&mut pass, len);
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
    }
}
