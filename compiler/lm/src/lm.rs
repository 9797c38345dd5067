//! The model: its layers' forward pass over whole texts and over chunks of a session.

use std::sync::atomic::{AtomicBool, Ordering};

use moa_format::ModelConfig;
use moa_mask::ModelMasks;

use crate::observer::{Observer, Phase, Step, check};
use crate::weights::{LayerWeights, WeightSource, Weights, load};
use crate::{AttentionShape, Device, Keep, KvCache, LmError, Projected, Result, RopeTable, Turn};

/// Logits that are held at once, at most; 64 MiB.
const LOGITS_AT_ONCE: usize = 1 << 24;

/// What keys and values are rounded to before attention sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvPrecision {
    /// Nothing: they stay as the device computes them.
    #[default]
    Full,
    /// Integers of -127 to 127 with one scale for every token and KV head: what an 8-bit cache would hold.
    Int8,
}

/// A language model whose weights lie on a device.
#[derive(Debug)]
pub struct Lm<D: Device> {
    pub(crate) device: D,
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights<D::Buffer>,
    pub(crate) shape: AttentionShape,
    pub(crate) dense: ModelMasks,
    /// Whether keys and values are rounded to 8 bits.
    kv8: AtomicBool,
}

/// What a layer's backward needs to recompute the layer.
#[derive(Debug)]
pub(crate) struct Saved<B> {
    /// The residual stream before the layer.
    pub(crate) input: B,
    /// What attention gave, unless it is computed again.
    pub(crate) attended: Option<Mid<B>>,
}

/// Between attention and MLP.
#[derive(Debug)]
pub(crate) struct Mid<B> {
    /// The residual stream.
    pub(crate) x: B,
    /// Log-sum-exp of attention's rows.
    pub(crate) lse: B,
}

/// A run of positions on its way through the layers.
#[derive(Debug)]
pub(crate) struct Run<'a, B> {
    /// Position of the first row.
    pub(crate) start: u32,
    /// Cosines and sines of the positions.
    pub(crate) rope: RopeTable<B>,
    /// What each head sees.
    pub(crate) masks: &'a ModelMasks,
    /// Whether keys and values are rounded to 8 bits.
    pub(crate) kv8: bool,
}

/// Queries, keys and values of a run, RoPE applied.
#[derive(Debug)]
pub(crate) struct Qkv<B> {
    pub(crate) q: B,
    pub(crate) k: B,
    pub(crate) v: B,
}

impl<B> Qkv<B> {
    pub(crate) fn at(&self, start: u32) -> Projected<'_, B> {
        Projected {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            start,
        }
    }
}

impl<D: Device> Lm<D> {
    /// Moves a model's weights to `device`.
    pub fn load(device: D, source: &dyn WeightSource, observer: &dyn Observer) -> Result<Self> {
        let config = source.config().clone();
        config.check()?;
        let weights = load(&device, source, observer)?;
        Ok(Self {
            shape: AttentionShape {
                heads: config.heads as usize,
                kv_heads: config.kv_heads as usize,
                head_dim: config.head_dim as usize,
            },
            dense: ModelMasks::dense(config.layers as usize, config.kv_heads as usize),
            device,
            config,
            weights,
            kv8: AtomicBool::new(false),
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the weights lie.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Rounds keys and values from now on as an 8-bit cache would, or no longer does so: a simulation that compares
    /// plans with a quantized cache, by way of the host. Gradients do not know of it. A session that has begun keeps
    /// what it holds.
    pub fn set_kv_precision(&self, precision: KvPrecision) {
        let int8 = precision == KvPrecision::Int8;
        self.kv8.store(int8, Ordering::Relaxed);
    }

    /// Next-token logits of every position, `[ids.len(), vocab_size]`.
    pub fn logits(
        &self,
        ids: &[u32],
        masks: Option<&ModelMasks>,
        observer: &dyn Observer,
    ) -> Result<Vec<f32>> {
        let masks = self.masks(masks)?;
        let x = self.forward(ids, masks, Phase::Forward, observer, None)?;
        let rows: Vec<u32> = (0..count(ids.len())?).collect();
        let mut logits = Vec::with_capacity(ids.len() * self.config.vocab_size as usize);
        for rows in rows.chunks(self.logit_rows()) {
            check(observer)?;
            let chunk = self.lm_head(&self.normed_rows(&x, rows, &self.weights.final_norm)?)?;
            logits.extend(self.device.download(&chunk)?);
        }
        Ok(logits)
    }

    /// The masks asked for, or dense ones; refused if they are another model's.
    pub(crate) fn masks<'a>(&'a self, masks: Option<&'a ModelMasks>) -> Result<&'a ModelMasks> {
        let masks = masks.unwrap_or(&self.dense);
        masks.check_shape(self.config.layers as usize, self.config.kv_heads as usize)?;
        Ok(masks)
    }

    /// Refuses an empty text, one too long to count, and tokens outside the vocabulary.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(LmError::NoTokens);
        }
        count(ids.len())?;
        let vocab_size = self.config.vocab_size;
        match ids.iter().position(|&id| id >= vocab_size) {
            None => Ok(()),
            Some(position) => Err(LmError::BadToken {
                id: ids[position],
                position,
                vocab_size,
            }),
        }
    }

    /// The residual stream after the last layer, `[ids.len(), hidden_dim]`; `saved` receives what a backward needs.
    pub(crate) fn forward(
        &self,
        ids: &[u32],
        masks: &ModelMasks,
        phase: Phase,
        observer: &dyn Observer,
        mut saved: Option<&mut Vec<Saved<D::Buffer>>>,
    ) -> Result<D::Buffer> {
        let mut run = self.run(ids, 0, masks)?;
        // What everything is compared with stays as it is.
        run.kv8 &= phase != Phase::Teacher;
        let mut x = self.embed(ids)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            check(observer)?;
            let input = if saved.is_some() {
                Some(self.device.copy(&x)?)
            } else {
                None
            };
            let qkv = self.project(layer, &x, &run.rope)?;
            let mid = self.attention(layer, index, &run, &qkv, x, None)?;
            drop(qkv);
            let Mid { x: mid, lse } = mid;
            if let (Some(saved), Some(input)) = (saved.as_deref_mut(), input) {
                let attended = if self.device.recomputes_attention() {
                    None
                } else {
                    Some(Mid {
                        x: self.device.copy(&mid)?,
                        lse,
                    })
                };
                saved.push(Saved { input, attended });
            }
            x = self.mlp(layer, mid)?;
            observer.step(Step {
                phase,
                done: count(index + 1)?,
                total: self.config.layers,
            });
        }
        Ok(x)
    }

    /// Rows of the embedding.
    pub(crate) fn embed(&self, ids: &[u32]) -> Result<D::Buffer> {
        self.device.embed(
            &self.weights.embedding.weight,
            self.config.hidden_dim as usize,
            ids,
        )
    }

    /// What every layer of a run shares.
    pub(crate) fn run<'a>(
        &self,
        ids: &[u32],
        start: u32,
        masks: &'a ModelMasks,
    ) -> Result<Run<'a, D::Buffer>> {
        self.check_ids(ids)?;
        let end = u64::from(start) + ids.len() as u64;
        let end = u32::try_from(end).map_err(|_too_many| LmError::TooManyTokens {
            got: ids.len(),
            most: u32::MAX - start,
        })?;
        let (cos, sin) = self.config.rope.cos_sin(self.config.head_dim, start..end);
        Ok(Run {
            start,
            rope: RopeTable {
                cos: self.device.upload(cos)?,
                sin: self.device.upload(sin)?,
                head_dim: self.shape.head_dim,
            },
            masks,
            kv8: self.kv8.load(Ordering::Relaxed),
        })
    }

    /// A layer's first half: the residual stream `x`, which `qkv` was projected from, with attention added.
    pub(crate) fn attention(
        &self,
        layer: &LayerWeights<D::Buffer>,
        index: usize,
        run: &Run<'_, D::Buffer>,
        qkv: &Qkv<D::Buffer>,
        x: D::Buffer,
        cache: Option<&mut KvCache<D::Buffer>>,
    ) -> Result<Mid<D::Buffer>> {
        let rounded = if run.kv8 {
            Some((self.rounded_to_int8(&qkv.k)?, self.rounded_to_int8(&qkv.v)?))
        } else {
            None
        };
        let mut projected = qkv.at(run.start);
        if let Some((k, v)) = &rounded {
            (projected.k, projected.v) = (k, v);
        }
        let masks = run.masks.layer(index);
        let attended = self
            .device
            .attention(self.shape, &projected, masks, cache.as_deref())?;
        if let Some(cache) = cache {
            self.device.commit(self.shape, &projected, cache)?;
        }
        Ok(Mid {
            x: self
                .device
                .matmul(&attended.o, &layer.o, Some(x), Keep::Full)?,
            lse: attended.lse,
        })
    }

    /// Keys or values `[positions, kv_heads, head_dim]` as an 8-bit cache would give them back.
    fn rounded_to_int8(&self, values: &D::Buffer) -> Result<D::Buffer> {
        let mut values = self.device.download(values)?;
        for head in values.chunks_mut(self.shape.head_dim) {
            let largest = head
                .iter()
                .fold(0.0_f32, |most, value| most.max(value.abs()));
            if largest > 0.0 {
                let scale = largest / 127.0;
                for value in head {
                    *value = (*value / scale).round() * scale;
                }
            }
        }
        self.device.upload_weight(values)
    }

    /// A layer's second half: `mid` with the MLP's output added.
    pub(crate) fn mlp(&self, layer: &LayerWeights<D::Buffer>, mid: D::Buffer) -> Result<D::Buffer> {
        let h = self.norm(&mid, &layer.ffn_norm)?;
        let gate = self.device.matmul(&h, &layer.gate, None, Keep::Working)?;
        let up = self.device.matmul(&h, &layer.up, None, Keep::Working)?;
        drop(h);
        let act = self.device.swiglu(&gate, &up)?;
        drop((gate, up));
        self.device.matmul(&act, &layer.down, Some(mid), Keep::Full)
    }

    /// Queries, keys and values of the residual stream.
    pub(crate) fn project(
        &self,
        layer: &LayerWeights<D::Buffer>,
        x: &D::Buffer,
        rope: &RopeTable<D::Buffer>,
    ) -> Result<Qkv<D::Buffer>> {
        let h = self.norm(x, &layer.attention_norm)?;
        let mut q = self.device.matmul(&h, &layer.q, None, Keep::Working)?;
        let mut k = self.device.matmul(&h, &layer.k, None, Keep::Working)?;
        let v = self.device.matmul(&h, &layer.v, None, Keep::Working)?;
        self.device
            .rope(&mut q, self.shape.heads, rope, Turn::Forward)?;
        self.device
            .rope(&mut k, self.shape.kv_heads, rope, Turn::Forward)?;
        Ok(Qkv { q, k, v })
    }

    pub(crate) fn norm(&self, x: &D::Buffer, weight: &D::Buffer) -> Result<D::Buffer> {
        self.device.rms_norm(x, weight, self.config.rms_norm_eps)
    }

    /// Some rows of the final residual stream, normed and ready for [`lm_head`](Self::lm_head).
    pub(crate) fn normed_rows(
        &self,
        x: &D::Buffer,
        rows: &[u32],
        weight: &D::Buffer,
    ) -> Result<D::Buffer> {
        let hidden = self.config.hidden_dim as usize;
        let rows = self.device.gather_rows(x, hidden, rows)?;
        self.norm(&rows, weight)
    }

    /// Logits of normed rows.
    pub(crate) fn lm_head(&self, normed: &D::Buffer) -> Result<D::Buffer> {
        self.device
            .matmul(normed, self.weights.lm_head(), None, Keep::Full)
    }

    /// Rows whose logits are computed at once.
    pub(crate) fn logit_rows(&self) -> usize {
        logit_rows(self.config.vocab_size)
    }
}

/// Rows of logits that are held at once, for a vocabulary of this size.
pub fn logit_rows(vocab_size: u32) -> usize {
    (LOGITS_AT_ONCE / vocab_size as usize).clamp(1, 256)
}

/// A number of tokens as positions count them.
pub(crate) fn count(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_too_many| LmError::TooManyTokens {
        got: len,
        most: u32::MAX,
    })
}
