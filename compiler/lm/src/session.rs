//! A text being read and written: keys and values of its past in sink slots and rings.
//!
//! A chunk attends over the rings as they were before it and over its own keys, then enters them. So a prompt in
//! one piece, in chunks, in turns or after a rewind sees exactly the same keys.

use moa_mask::{KvBytes, ModelMasks, PREFILL_CHUNK, RingLayout, SLACK, memory};

use crate::lm::count;
use crate::observer::{Observer, Phase, Step, check};
use crate::{Device, Keep, KvCache, Lm, LmError, Result};

/// A model with a past, at a declared context length.
#[derive(Debug)]
pub struct Session<'a, D: Device> {
    lm: &'a Lm<D>,
    masks: ModelMasks,
    context: u32,
    caches: Vec<KvCache<D::Buffer>>,
    len: u32,
    /// The most tokens that the rings have held: what may be taken back is counted from here.
    high_water: u32,
    /// A chunk failed half-way through the layers.
    broken: bool,
}

impl<D: Device> Lm<D> {
    /// An empty session for at most `context` tokens, prompt and generation together. `masks` are those of a
    /// plan at that context; dense if absent.
    pub fn session(&self, masks: Option<&ModelMasks>, context: u32) -> Result<Session<'_, D>> {
        let masks = self.masks(masks)?.clone();
        // Also refuses a context of zero.
        self.config.kv_shape().kv_bytes(
            &masks,
            context,
            PREFILL_CHUNK,
            self.device.value_bytes(Keep::Working),
        )?;
        let mut caches = Vec::with_capacity(masks.layers());
        for layer in 0..masks.layers() {
            let heads = masks.layer(layer);
            let (offsets, slots) = memory::slot_offsets(heads, context, SLACK);
            let values = slots as usize * self.shape.head_dim;
            caches.push(KvCache {
                layouts: heads
                    .iter()
                    .map(|&mask| RingLayout::new(mask, context, SLACK))
                    .collect(),
                slot_offsets: offsets.into_iter().map(|offset| offset as usize).collect(),
                k: self.device.zeros(values, Keep::Working)?,
                v: self.device.zeros(values, Keep::Working)?,
            });
        }
        Ok(Session {
            lm: self,
            masks,
            context,
            caches,
            len: 0,
            high_water: 0,
            broken: false,
        })
    }
}

impl<D: Device> Session<'_, D> {
    /// Tokens in the session.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The declared context length.
    pub fn context(&self) -> u32 {
        self.context
    }

    /// Bytes of keys and values as the device keeps them, slack and chunk included.
    pub fn kv_bytes(&self) -> Result<KvBytes> {
        let bytes = self.lm.device.value_bytes(Keep::Working);
        Ok(self
            .lm
            .config
            .kv_shape()
            .kv_bytes(&self.masks, self.context, PREFILL_CHUNK, bytes)?)
    }

    /// Appends tokens and returns the logits after the last one, `[vocab_size]`.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.prefill_watched(ids, &())
    }

    /// [`prefill`](Self::prefill) that reports and can be cancelled between chunks; the chunks that were done stay.
    pub fn prefill_watched(&mut self, ids: &[u32], observer: &dyn Observer) -> Result<Vec<f32>> {
        if self.broken {
            return Err(LmError::BrokenSession);
        }
        self.lm.check_ids(ids)?;
        if ids.len() > (self.context - self.len) as usize {
            return Err(LmError::ContextFull {
                len: self.len,
                more: ids.len(),
                context: self.context,
            });
        }
        let total = count(ids.len())?;
        let mut done = 0;
        let mut last = None;
        for chunk in ids.chunks(PREFILL_CHUNK as usize) {
            check(observer)?;
            self.broken = true;
            let x = self.chunk(chunk)?;
            self.broken = false;
            let len = count(chunk.len())?;
            self.len += len;
            self.high_water = self.high_water.max(self.len);
            done += len;
            last = Some((x, len - 1));
            observer.step(Step {
                phase: Phase::Prefill,
                done,
                total,
            });
        }
        let (x, row) = last.ok_or(LmError::NoTokens)?;
        let normed = self
            .lm
            .normed_rows(&x, &[row], &self.lm.weights.final_norm)?;
        self.lm.device.download(&self.lm.lm_head(&normed)?)
    }

    /// Appends one token and returns the logits after it.
    pub fn decode(&mut self, id: u32) -> Result<Vec<f32>> {
        self.prefill(&[id])
    }

    /// How many tokens can be taken back now.
    pub fn rewindable(&self) -> u32 {
        self.len
            .saturating_sub(self.high_water.saturating_sub(SLACK))
    }

    /// Takes back the last `tokens` tokens, exactly: what follows is as if they had never been.
    pub fn rewind(&mut self, tokens: u32) -> Result<()> {
        let most = self.rewindable();
        if tokens > most {
            return Err(LmError::RewindTooFar {
                asked: tokens,
                most,
            });
        }
        self.len -= tokens;
        Ok(())
    }

    /// The residual stream after the last layer of a chunk, whose keys and values enter the rings.
    fn chunk(&mut self, ids: &[u32]) -> Result<D::Buffer> {
        let lm = self.lm;
        let run = lm.run(ids, self.len, &self.masks)?;
        let mut x = lm.embed(ids)?;
        for (index, (layer, cache)) in lm.weights.layers.iter().zip(&mut self.caches).enumerate() {
            let qkv = lm.project(layer, &x, &run.rope)?;
            let mid = lm.attention(layer, index, &run, &qkv, x, Some(cache))?;
            x = lm.mlp(layer, mid.x)?;
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests;
