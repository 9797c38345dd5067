//! Every buffer but the weights: rings, chunk scratch, activations, tables; and the ledger of all bytes.

use std::collections::BTreeMap;

use moa_mask::abi::{HeadSpan, MAX_STOPS, SampleParams, StepState};
use moa_shaders::ARGMAX_PARTS;
use wgpu::BufferUsages;

use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::setup::Setup;

/// Tokens that one [`crate::Engine::decode`] call may choose: one read-back, and never more than the slack.
pub const MAX_DECODE_BATCH: u32 = 32;

/// Batches whose ids may be on their way back: while one is read, the device works on the next.
pub(crate) const STAGING_BUFFERS: usize = 3;

/// Bytes on the device by what they are for.
pub type Ledger = BTreeMap<&'static str, u64>;

/// Makes buffers and writes them into the ledger.
pub(crate) struct Allocator<'a> {
    gpu: &'a Gpu,
    ledger: Ledger,
}

impl<'a> Allocator<'a> {
    pub(crate) fn new(gpu: &'a Gpu) -> Self {
        Self {
            gpu,
            ledger: Ledger::new(),
        }
    }

    pub(crate) fn into_ledger(self) -> Ledger {
        self.ledger
    }

    pub(crate) fn total(&self) -> u64 {
        self.ledger.values().sum()
    }

    /// A storage buffer that the host may write and copy from.
    pub(crate) fn storage(
        &mut self,
        account: &'static str,
        label: &str,
        bytes: u64,
    ) -> wgpu::Buffer {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        self.buffer(account, label, bytes, usage)
    }

    /// A storage buffer with what the host has computed once.
    pub(crate) fn table<T: bytemuck::NoUninit>(&mut self, label: &str, data: &[T]) -> wgpu::Buffer {
        let bytes = bytemuck::cast_slice(data);
        let buffer = self.storage("tables", label, bytes.len() as u64);
        self.gpu.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// The same, for kernels that bind it as uniform too.
    pub(crate) fn uniform_table<T: bytemuck::NoUninit>(
        &mut self,
        label: &str,
        data: &[T],
    ) -> wgpu::Buffer {
        let bytes = bytemuck::cast_slice(data);
        let usage = BufferUsages::STORAGE | BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let buffer = self.buffer("tables", label, bytes.len() as u64, usage);
        self.gpu.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// A uniform buffer with constants of a dispatch.
    pub(crate) fn uniform(&mut self, data: &[u8]) -> wgpu::Buffer {
        let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let buffer = self.buffer("tables", "params", data.len() as u64, usage);
        self.gpu.queue.write_buffer(&buffer, 0, data);
        buffer
    }

    fn staging(&mut self, label: &str, bytes: u64) -> wgpu::Buffer {
        self.buffer(
            "staging",
            label,
            bytes,
            BufferUsages::MAP_READ | BufferUsages::COPY_DST,
        )
    }

    fn buffer(
        &mut self,
        account: &'static str,
        label: &str,
        bytes: u64,
        usage: BufferUsages,
    ) -> wgpu::Buffer {
        *self.ledger.entry(account).or_default() += bytes;
        self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: false,
        })
    }
}

/// A layer's cache and what attention must know about it.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) k: wgpu::Buffer,
    pub(crate) v: wgpu::Buffer,
    pub(crate) spans: wgpu::Buffer,
    pub(crate) items: wgpu::Buffer,
    pub(crate) item_count: u32,
}

/// All buffers but the weights.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) state: wgpu::Buffer,
    pub(crate) tokens: wgpu::Buffer,
    pub(crate) ids: wgpu::Buffer,
    pub(crate) rope: wgpu::Buffer,
    pub(crate) hidden: wgpu::Buffer,
    pub(crate) normed: wgpu::Buffer,
    /// The token in flight as codes that have met the next norm's weights.
    pub(crate) hidden_codes: wgpu::Buffer,
    /// What goes into a product with a residual, as codes: attention's results, then those of the gate.
    pub(crate) codes: wgpu::Buffer,
    pub(crate) q: wgpu::Buffer,
    pub(crate) k: wgpu::Buffer,
    pub(crate) v: wgpu::Buffer,
    pub(crate) attended: wgpu::Buffer,
    pub(crate) gate: wgpu::Buffer,
    pub(crate) up: wgpu::Buffer,
    pub(crate) k_chunk: wgpu::Buffer,
    pub(crate) v_chunk: wgpu::Buffer,
    /// Spans under which the chunk scratch is a ring of one token.
    pub(crate) chunk_spans: wgpu::Buffer,
    pub(crate) partials: wgpu::Buffer,
    pub(crate) logits: wgpu::Buffer,
    /// The largest logit of each part, and its id.
    pub(crate) best: wgpu::Buffer,
    pub(crate) layers: Vec<LayerCache>,
    /// Tokens that end a text: their number, then the ids.
    pub(crate) stops: wgpu::Buffer,
    /// How often each token was generated, and whether it is in the prompt.
    pub(crate) counts: wgpu::Buffer,
    /// Sampling's constants, as they are at the moment.
    pub(crate) sampling: wgpu::Buffer,
    pub(crate) ids_staging: Vec<wgpu::Buffer>,
    pub(crate) logits_staging: wgpu::Buffer,
}

impl Buffers {
    pub(crate) fn new(allocator: &mut Allocator<'_>, setup: &Setup) -> Self {
        let config = setup.config();
        let rope = rope_table(setup);
        // Whole vectors.
        let logits_bytes = (u64::from(config.vocab_size) * 4).next_multiple_of(16);
        let ids_bytes = u64::from(MAX_DECODE_BATCH) * 4;
        let mut row =
            |label: &str, width| allocator.storage("activations", label, setup.rows_bytes(width));
        let hidden = row("hidden", config.hidden_dim);
        let normed = row("normed", config.hidden_dim);
        let q = row("q", config.q_dim());
        let k = row("k", config.kv_dim());
        let v = row("v", config.kv_dim());
        let attended = row("attended", config.q_dim());
        let gate = row("gate", config.ffn_dim);
        let up = row("up", config.ffn_dim);
        let tokens = row("tokens", 1);
        let mut codes = |label: &str, cols| {
            allocator.storage("activations", label, moa_mask::abi::code_bytes(cols))
        };
        let hidden_codes = codes("hidden_codes", config.hidden_dim);
        let codes = codes("codes", config.q_dim().max(config.ffn_dim));
        let layers = (0..setup.masks().layers())
            .map(|layer| LayerCache::new(allocator, setup, layer))
            .collect();
        Self {
            state: allocator.buffer(
                "activations",
                "state",
                size_of::<StepState>() as u64,
                BufferUsages::STORAGE
                    | BufferUsages::UNIFORM
                    | BufferUsages::COPY_DST
                    | BufferUsages::COPY_SRC,
            ),
            tokens,
            ids: allocator.storage("activations", "ids", ids_bytes),
            rope: allocator.table("rope", &rope),
            hidden,
            normed,
            hidden_codes,
            codes,
            q,
            k,
            v,
            attended,
            gate,
            up,
            k_chunk: allocator.storage("kvScratch", "k_chunk", setup.chunk_kv_bytes()),
            v_chunk: allocator.storage("kvScratch", "v_chunk", setup.chunk_kv_bytes()),
            chunk_spans: allocator.uniform_table("chunk_spans", &chunk_spans(setup)),
            partials: allocator.storage("activations", "partials", setup.partials_bytes()),
            logits: allocator.storage("activations", "logits", logits_bytes),
            best: allocator.storage("activations", "best", u64::from(ARGMAX_PARTS) * 8),
            layers,
            stops: allocator.storage("activations", "stops", (1 + u64::from(MAX_STOPS)) * 4),
            counts: allocator.storage("activations", "counts", logits_bytes),
            sampling: allocator.uniform(bytemuck::bytes_of(&SampleParams::default())),
            ids_staging: (0..STAGING_BUFFERS)
                .map(|_| {
                    let state_bytes = size_of::<StepState>() as u64;
                    allocator.staging("ids_staging", state_bytes + ids_bytes)
                })
                .collect(),
            logits_staging: allocator.staging("logits_staging", logits_bytes),
        }
    }

    pub(crate) fn destroy(&self) {
        let layers = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.k, &layer.v, &layer.spans, &layer.items]);
        let others = [
            &self.state,
            &self.tokens,
            &self.ids,
            &self.rope,
            &self.hidden,
            &self.normed,
            &self.hidden_codes,
            &self.codes,
            &self.q,
            &self.k,
            &self.v,
            &self.attended,
            &self.gate,
            &self.up,
            &self.k_chunk,
            &self.v_chunk,
            &self.chunk_spans,
            &self.partials,
            &self.logits,
            &self.best,
            &self.stops,
            &self.counts,
            &self.sampling,
            &self.logits_staging,
        ];
        for buffer in layers.chain(others).chain(&self.ids_staging) {
            buffer.destroy();
        }
    }
}

impl LayerCache {
    fn new(allocator: &mut Allocator<'_>, setup: &Setup, layer: usize) -> Self {
        let spans = setup.spans(layer);
        let work = setup.work_list(&spans);
        let bytes = setup.layer_cache_bytes(layer);
        Self {
            k: allocator.storage("kvCache", &format!("k_ring.{layer}"), bytes),
            v: allocator.storage("kvCache", &format!("v_ring.{layer}"), bytes),
            spans: allocator.uniform_table("spans", &spans),
            items: allocator.uniform_table("items", &work.items),
            item_count: work.count,
        }
    }
}

/// Spans under which a KV head's row of the chunk's first token is a ring of its own.
fn chunk_spans(setup: &Setup) -> Vec<HeadSpan> {
    (0..setup.heads().kv_heads)
        .map(|kv_head| HeadSpan {
            sink: 0,
            window: 1,
            ring: 1,
            slot_offset: kv_head,
        })
        .collect()
}

/// `[position][head_dim / 2]` pairs of cosine and sine.
fn rope_table(setup: &Setup) -> Vec<[f32; 2]> {
    let config = setup.config();
    let (cos, sin) = config.rope.cos_sin(config.head_dim, 0..setup.context());
    cos.into_iter()
        .zip(sin)
        .map(|(cos, sin)| [cos, sin])
        .collect()
}

/// Whatever the device said while `scope` was open, as an error about `what`.
pub(crate) async fn close_scopes(
    scopes: [wgpu::ErrorScopeGuard; 2],
    what: &str,
    bytes: u64,
) -> Result<()> {
    let [memory, validation] = scopes;
    // Popped in the reverse order of opening.
    let refused = validation.pop();
    let exhausted = memory.pop();
    if exhausted.await.is_some() {
        return Err(EngineError::OutOfMemory {
            what: what.to_owned(),
            bytes,
        });
    }
    match refused.await {
        Some(error) => Err(EngineError::Gpu {
            what: what.to_owned(),
            reason: error.to_string(),
        }),
        None => Ok(()),
    }
}

/// Opens the scopes that [`close_scopes`] closes.
pub(crate) fn open_scopes(gpu: &Gpu) -> [wgpu::ErrorScopeGuard; 2] {
    let memory = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    [memory, validation]
}
