//! How an engine comes to be: its buffers, kernels and dispatches, then the weights chunk by chunk, then two tokens that
//! nobody reads.

use std::collections::VecDeque;
use std::sync::Arc;

use moa_mask::{RingLayout, SLACK};
use moa_shaders::Variant;

use crate::buffers::{Allocator, Buffers, close_scopes, open_scopes};
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::pipelines::Made;
use crate::portion::Portion;
use crate::program::{DecodeKernels, Program};
use crate::setup::Setup;
use crate::tune::{check_variant, pipelines};
use crate::weight_layout::MAX_BUFFER_BYTES;
use crate::weights::WeightBuffers;

/// Prefill chunk of a software adapter, where a whole one takes seconds.
const CHUNK_SOFTWARE: u32 = 64;

/// What a caller may choose.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineOptions {
    /// Tokens that a prefill call takes at most; by default as many as the scratch holds, 64 on a software adapter.
    pub prefill_chunk: Option<u32>,
    /// Which kernels decode; by default the fused ones, and separate ones on a software adapter, which is quicker with
    /// small workgroups.
    pub decode_kernels: Option<DecodeKernels>,
    /// What the kernels use beyond WebGPU's defaults; the device must have been opened with it. By default nothing, until
    /// [`Engine::tune`] finds what is quicker.
    pub variant: Variant,
    /// Bytes of weights in one binding at most; by default 128 MiB, and as many as an embedding or `lm_head` has where the
    /// device has such bindings and room.
    pub binding_bytes: Option<u64>,
}

impl Engine {
    /// Makes every buffer, pipeline and bind group. Weights come afterwards ([`write_shard`](Self::write_shard)).
    pub async fn new(gpu: Gpu, setup: Setup, options: EngineOptions) -> Result<Self> {
        Self::build(gpu, setup, options, None).await
    }

    /// The same, with weights that are on the device already if there are some.
    pub(crate) async fn build(
        gpu: Gpu,
        setup: Setup,
        options: EngineOptions,
        shared: Option<Arc<WeightBuffers>>,
    ) -> Result<Self> {
        let capacity = setup.chunk_capacity();
        let chunk = match options.prefill_chunk {
            Some(0) => {
                return Err(EngineError::BadArgument {
                    what: "prefill chunk",
                    got: "0".into(),
                    expected: "at least 1 token",
                });
            }
            Some(chunk) => chunk.min(capacity),
            None if gpu.is_software() => CHUNK_SOFTWARE.min(capacity),
            None => capacity,
        };
        let variant = options.variant;
        check_variant(&gpu, variant)?;
        let mut most = gpu.largest_binding();
        if let Some(bytes) = options.binding_bytes {
            most = most.min(bytes);
        }
        let (mut allocator, weights, buffers) = loop {
            let mut allocator = Allocator::new(&gpu);
            let scopes = open_scopes(&gpu);
            #[cfg_attr(
                target_arch = "wasm32",
                expect(
                    clippy::arc_with_non_send_sync,
                    reason = "natively, where there are threads, wgpu's buffers are both"
                )
            )]
            let weights = shared
                .clone()
                .unwrap_or_else(|| Arc::new(WeightBuffers::new(&mut allocator, &setup, most)));
            let buffers = Buffers::new(&mut allocator, &setup);
            let bytes = allocator.total();
            let made = close_scopes(scopes, "weights, caches and scratch", bytes).await;
            let Err(error) = made else {
                break (allocator, weights, buffers);
            };
            buffers.destroy();
            if shared.is_some() {
                return Err(error);
            }
            weights.destroy();
            if most <= MAX_BUFFER_BYTES {
                return Err(error);
            }
            // There may be room for smaller ones.
            most = MAX_BUFFER_BYTES;
        };
        let bytes = allocator.total();

        let scopes = open_scopes(&gpu);
        let kernels = options.decode_kernels.unwrap_or(if gpu.is_software() {
            DecodeKernels::Separate
        } else {
            DecodeKernels::Fused
        });
        let mut made = Made::default();
        let program = Program::new(
            &mut pipelines(&gpu, &setup, variant, &mut made),
            &mut allocator,
            &setup,
            &weights,
            &buffers,
            kernels,
        );
        close_scopes(scopes, "the kernels", bytes).await?;
        let program = program?;
        gpu.check()?;

        let rings = setup
            .masks()
            .iter()
            .map(|mask| RingLayout::new(mask, setup.context(), SLACK).slots());
        let unwrapped = rings.min().unwrap_or(0);
        let ledger = allocator.into_ledger();
        Ok(Self {
            gpu,
            setup,
            weights,
            buffers,
            program,
            made,
            kernels,
            variant,
            ledger,
            chunk,
            portion: Portion::new(),
            loaded: false,
            len: 0,
            longest: 0,
            unwrapped,
            has_logits: false,
            pending: None,
            flights: VecDeque::new(),
            history: Vec::new(),
            prompt_len: 0,
            counted: false,
        })
    }

    /// Checks a whole chunk of a weight shard against its hash and sends it to the device. `offset` is a multiple
    /// of `moa_format::CHUNK_BYTES`; each chunk once, in any order.
    pub fn write_shard(&mut self, shard: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        unshared(&mut self.weights, shard, offset)?.write(&self.gpu, shard, offset, bytes)
    }

    /// Where a chunk of a shard lies on the device: `(buffer, offset, bytes)`, one or two of them in order. A buffer's
    /// label is `weights.` and its index.
    pub fn chunk_places(&self, shard: usize, offset: u64) -> Result<Vec<(usize, u64, u64)>> {
        self.weights.chunk_places(shard, offset)
    }

    /// Takes note of a chunk that the caller has checked and written to its places itself.
    pub fn accept_chunk(&mut self, shard: usize, offset: u64) -> Result<()> {
        unshared(&mut self.weights, shard, offset)?.accept(shard, offset)
    }

    /// Waits for the uploads, checks that nothing is missing, and runs two tokens so that drivers have compiled
    /// everything before the first real one.
    pub async fn finish_loading(&mut self) -> Result<()> {
        self.weights.check_complete()?;
        self.gpu.done().await?;
        self.loaded = true;
        self.prefill(&[0]).await?;
        if self.setup.context() > 1 {
            self.decode(2).await?;
        }
        self.reset();
        Ok(())
    }
}

/// The weights while they are one engine's alone: they are shared only when every chunk is there.
fn unshared(
    weights: &mut Arc<WeightBuffers>,
    shard: usize,
    offset: u64,
) -> Result<&mut WeightBuffers> {
    Arc::get_mut(weights).ok_or(EngineError::BadChunk {
        shard,
        offset,
        reason: "it was written before",
    })
}
