//! An engine: caches and buffers for a batch of requests of one declared context length, all allocated at once.
//!
//! What is in a buffer, and in which order layers use it, is the business of `step.rs`; texts are that of `generate.rs`.

use std::sync::Arc;

use half::bf16;
use moa_kernels::{
    Argmax, Buffer, CacheSlots, Decode, DecodeWorkspace, Gpu, Graph, GreedyState, KvBuffers,
    Matmul, Prefill, QkvRows, RequestSlots, Rows,
};
use moa_lm::LmError;
use moa_mask::{KvBytes, KvFormat, ModelMasks, RingLayout, SLACK, memory};

use crate::{Model, Result};

/// Tokens that may end a text; the list lies on the device and has room for so many.
pub(crate) const STOPS: usize = 16;

/// What an engine is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// The declared context length of every request: prompt and generation together.
    pub context: u32,
    /// Requests at once.
    pub batch: usize,
    /// Tokens of a prefill chunk at most, of all requests together.
    pub chunk: usize,
    /// How caches are kept.
    pub format: KvFormat,
}

/// One layer's caches.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) slots: CacheSlots,
    pub(crate) kv: KvBuffers<bf16>,
    pub(crate) decode: Decode,
}

/// Keys and values of the chunk in flight, and of a layer's cache of bytes in 16 bits: shared by all layers.
#[derive(Debug)]
pub(crate) struct ChunkScratch {
    pub(crate) k: Buffer<bf16>,
    pub(crate) v: Buffer<bf16>,
    pub(crate) widened: Option<(Buffer<bf16>, Buffer<bf16>)>,
}

/// What lies between products, for `rows` rows.
#[derive(Debug)]
pub(crate) struct Activations {
    pub(crate) rows: usize,
    /// The residual stream.
    pub(crate) x: Buffer<f32>,
    pub(crate) normed: Buffer<bf16>,
    pub(crate) qkv: Buffer<bf16>,
    pub(crate) q: Buffer<bf16>,
    pub(crate) attended: Buffer<bf16>,
    pub(crate) gate: Buffer<bf16>,
    pub(crate) up: Buffer<bf16>,
    pub(crate) activated: Buffer<bf16>,
}

impl Activations {
    pub(crate) fn new(model: &Model, rows: usize) -> Result<Self> {
        let gpu = &model.gpu;
        let (hidden, ffn) = (
            model.config.hidden_dim as usize,
            model.config.ffn_dim as usize,
        );
        let head_dim = model.shape.head_dim as usize;
        let q_dim = model.shape.heads as usize * head_dim;
        let kv_dim = model.shape.kv_heads as usize * head_dim;
        Ok(Self {
            rows,
            x: gpu.zeros(rows * hidden)?,
            normed: gpu.zeros(rows * hidden)?,
            qkv: gpu.zeros(rows * (q_dim + 2 * kv_dim))?,
            q: gpu.zeros(rows * q_dim)?,
            attended: gpu.zeros(rows * q_dim)?,
            gate: gpu.zeros(rows * ffn)?,
            up: gpu.zeros(rows * ffn)?,
            activated: gpu.zeros(rows * ffn)?,
        })
    }
}

/// The kernels.
#[derive(Debug)]
pub(crate) struct Kernels {
    pub(crate) rows: Rows<bf16>,
    pub(crate) matmul: Matmul,
    pub(crate) qkv: QkvRows,
    pub(crate) prefill: Prefill,
    pub(crate) argmax: Argmax,
}

/// Serves a batch of texts.
#[derive(Debug)]
pub struct Engine {
    pub(crate) model: Arc<Model>,
    pub(crate) options: EngineOptions,
    pub(crate) kernels: Kernels,
    pub(crate) layers: Vec<LayerCache>,
    pub(crate) workspace: DecodeWorkspace,
    pub(crate) angles: Buffer<f32>,
    pub(crate) scratch: ChunkScratch,
    /// Of the decoded token of every request.
    pub(crate) step: Activations,
    /// `[batch, vocab_size]`.
    pub(crate) logits: Buffer<f32>,
    pub(crate) state: GreedyState,
    /// A whole decode step.
    pub(crate) graph: Option<Graph>,
    /// Tokens in each request's cache, for callers that feed tokens themselves.
    pub(crate) lens: Vec<u32>,
}

/// Where every request's slots lie in one layer's buffers, and how many there are.
fn request_slots(
    masks: &ModelMasks,
    layer: usize,
    options: EngineOptions,
) -> Result<(Vec<RequestSlots>, usize)> {
    let masks = masks.layer(layer);
    let (offsets, slots) = memory::slot_offsets(masks, options.context, SLACK);
    let all = u64::from(slots) * options.batch as u64;
    if all > u64::from(u32::MAX) {
        return Err(bad_option(
            "batch",
            options.batch,
            "fewer than 2^32 slots a layer",
        ));
    }
    let requests = (0..options.batch).map(|request| RequestSlots {
        heads: masks
            .iter()
            .zip(&offsets)
            .map(|(&mask, &offset)| {
                let layout = RingLayout::new(mask, options.context, SLACK);
                let first = u32::try_from(request).unwrap_or(u32::MAX) * slots;
                (mask, layout, first + offset)
            })
            .collect(),
    });
    let all = usize::try_from(all).unwrap_or(usize::MAX);
    Ok((requests.collect(), all))
}

fn bad_option(what: &'static str, got: usize, expected: &'static str) -> crate::EngineError {
    LmError::BadOption {
        what,
        got: got.to_string(),
        expected,
    }
    .into()
}

impl Engine {
    /// Allocates everything for `options`; `masks` are those of a plan at `options.context`, dense if absent.
    ///
    /// # Errors
    /// [`LmError::Mask`] for another model's masks, [`LmError::BadOption`], and the device's: out of memory above all.
    pub fn new(
        model: Arc<Model>,
        masks: Option<&ModelMasks>,
        options: EngineOptions,
    ) -> Result<Self> {
        let config = &model.config;
        let dense;
        let masks = match masks {
            Some(masks) => masks,
            None => {
                dense = ModelMasks::dense(config.layers as usize, config.kv_heads as usize);
                &dense
            }
        };
        if !(1..=65_535).contains(&options.batch) {
            return Err(bad_option("batch", options.batch, "1 to 65535"));
        }
        if !(1..=1 << 20).contains(&options.chunk) {
            return Err(bad_option("chunk", options.chunk, "1 to 1048576"));
        }
        if options.context > 1 << 27 {
            return Err(bad_option(
                "context",
                options.context as usize,
                "at most 2^27",
            ));
        }
        // Also refuses masks of another shape and a context of zero.
        model.kv_shape().batch_bytes(
            masks,
            options.context,
            u32::try_from(options.batch).unwrap_or(u32::MAX),
            u32::try_from(options.chunk).unwrap_or(u32::MAX),
            options.format,
        )?;
        let (gpu, shape) = (model.gpu.clone(), model.shape);
        let head_dim = shape.head_dim as usize;
        let mut layers = Vec::with_capacity(masks.layers());
        let mut most_slots = 0;
        for layer in 0..masks.layers() {
            let (requests, slots) = request_slots(masks, layer, options)?;
            most_slots = most_slots.max(slots);
            let cache = CacheSlots::new(&gpu, shape, &requests, slots)?;
            layers.push(LayerCache {
                kv: KvBuffers::zeros(&gpu, options.format, slots, shape.head_dim)?,
                decode: Decode::new::<bf16>(&gpu, &cache, options.format)?,
                slots: cache,
            });
        }
        let chunk = options.chunk * shape.kv_heads as usize * head_dim;
        let scratch = ChunkScratch {
            k: gpu.zeros(chunk)?,
            v: gpu.zeros(chunk)?,
            widened: match options.format {
                KvFormat::Sixteen => None,
                KvFormat::Int8 => Some((
                    gpu.zeros(most_slots * head_dim)?,
                    gpu.zeros(most_slots * head_dim)?,
                )),
            },
        };
        let batch = options.batch;
        Ok(Self {
            kernels: Kernels {
                rows: Rows::new(&gpu)?,
                matmul: Matmul::new(&gpu)?,
                qkv: QkvRows::new::<bf16>(&gpu, shape, options.format)?,
                prefill: Prefill::new::<bf16>(&gpu, shape)?,
                argmax: Argmax::new(&gpu)?,
            },
            workspace: DecodeWorkspace::new(&gpu, layers.iter().map(|layer| &layer.decode))?,
            angles: model.angles(options.context)?,
            scratch,
            step: Activations::new(&model, batch)?,
            logits: gpu.zeros(batch * config.vocab_size as usize)?,
            state: GreedyState {
                lens: gpu.zeros(batch)?,
                ids: gpu.zeros(batch)?,
                written: gpu.zeros(batch)?,
                limits: gpu.zeros(batch)?,
                tokens: gpu.zeros(batch * options.context as usize)?,
                stops: gpu.upload(&[u32::MAX; STOPS])?,
            },
            graph: None,
            lens: Vec::new(),
            layers,
            options,
            model,
        })
    }

    /// What the engine was made for.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// The model that it serves.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.model.gpu
    }

    /// Bytes of caches and of their scratch, as allocated: what `moa_mask::KvShape::batch_bytes` predicts.
    pub fn kv_bytes(&self) -> KvBytes {
        let values = |buffers: [&Buffer<bf16>; 2]| -> u64 {
            buffers.iter().map(|buffer| buffer.len() as u64 * 2).sum()
        };
        let widened = self
            .scratch
            .widened
            .as_ref()
            .map_or(0, |(k, v)| values([k, v]));
        KvBytes {
            cache: self.layers.iter().map(|layer| layer.kv.bytes()).sum(),
            scratch: values([&self.scratch.k, &self.scratch.v]) + widened,
        }
    }

    /// Whether the last logits are numbers, all of them.
    ///
    /// # Errors
    /// The device's.
    pub fn is_finite(&self) -> Result<bool> {
        let logits = self.gpu().download(&self.logits)?;
        Ok(logits.iter().all(|x| x.is_finite()))
    }

    /// Fills every slot with noise and says that each request has `len` tokens: what a bench times instead of a prefill.
    ///
    /// # Errors
    /// [`LmError::BadOption`] for a length that leaves no room in the context, and the device's.
    pub fn fill(&mut self, noise: &[bf16], len: u32) -> Result<()> {
        if len == 0 || len >= self.options.context {
            return Err(bad_option("len", len as usize, "less than the context"));
        }
        let gpu = self.model.gpu.clone();
        let block = gpu.upload(noise)?;
        let bytes: Vec<i8> = noise
            .iter()
            .map(|x| x.to_bits().to_le_bytes()[0].cast_signed())
            .collect();
        let bytes = gpu.upload(&bytes)?;
        let scale = gpu.upload(&vec![1.0f32 / 64.0; 1 << 16])?;
        for layer in &mut self.layers {
            match &mut layer.kv {
                KvBuffers::Sixteen { k, v } => {
                    gpu.repeat(&block, k)?;
                    gpu.repeat(&block, v)?;
                }
                KvBuffers::Int8 { k, v, scales } => {
                    gpu.repeat(&bytes, k)?;
                    gpu.repeat(&bytes, v)?;
                    gpu.repeat(&scale, scales)?;
                }
            }
        }
        let batch = self.options.batch;
        gpu.write(&mut self.state.lens, 0, &vec![len; batch])?;
        gpu.write(&mut self.state.ids, 0, &vec![0u32; batch])?;
        gpu.write(&mut self.state.written, 0, &vec![0u32; batch])?;
        let room = self.options.context - len;
        gpu.write(&mut self.state.limits, 0, &vec![room; batch])?;
        gpu.write(&mut self.state.stops, 0, &[u32::MAX; STOPS])?;
        Ok(())
    }
}
