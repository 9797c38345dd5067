//! Launchers of masked attention and of its gradients: shapes checked, blocks counted.

use bytemuck::cast_slice;
use cudarc::driver::CudaFunction;
use moa_mask::HeadMask;
use moa_mask::abi::PrefillRun;

use crate::extent::{Extent, Layout, check_len};
use crate::launch::{self, Arg, Grid};
use crate::prefill::{self, CONSUMERS, THREADS};
use crate::source::{KV_CONSUMERS, KV_STAGES, Kernel, KernelConfig, operand_bytes, stages};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// One layer's attention over linear keys, one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: u32,
    /// KV heads; divides `heads`.
    pub kv_heads: u32,
    /// Queries.
    pub q_len: u32,
    /// Position of the first query; there are `q_start + q_len` keys.
    pub q_start: u32,
    /// Channels of a head: a multiple of 16, at most 128.
    pub head_dim: u32,
    /// How tensors lie in memory.
    pub layout: Layout,
}

impl AttentionShape {
    /// Values of lse and D: `[heads, rows]`, rows = `q_len` rounded up to a multiple of 64.
    pub fn row_values(&self) -> usize {
        self.queries().row_values()
    }

    fn queries(&self) -> Extent {
        Extent {
            heads: self.heads,
            len: self.q_len,
            head_dim: self.head_dim,
            layout: self.layout,
        }
    }

    fn keys(&self) -> Extent {
        Extent {
            heads: self.kv_heads,
            len: self.q_start + self.q_len,
            ..self.queries()
        }
    }

    fn gqa_group(&self) -> u32 {
        self.heads / self.kv_heads
    }
}

/// Where gradients go: of q, k and v, in their inputs' shapes.
#[derive(Debug)]
pub struct AttentionGradients<'a, T> {
    /// Gradient of q.
    pub q: &'a mut Buffer<T>,
    /// Gradient of k.
    pub k: &'a mut Buffer<T>,
    /// Gradient of v.
    pub v: &'a mut Buffer<T>,
}

/// Masked attention of one shape under one set of spans.
#[derive(Debug)]
pub struct Attention {
    shape: AttentionShape,
    config: KernelConfig,
    spans: Buffer<u32>,
    run: Buffer<u32>,
    items: Buffer<u32>,
    blocks: u32,
    forward: CudaFunction,
    row_dot: CudaFunction,
    grad_q: CudaFunction,
    grad_kv: CudaFunction,
}

impl Attention {
    /// Compiles the kernels for `T` and keeps `masks`, one for each KV head.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Length`], [`CudaError::Capability`], and those of compiling.
    pub fn new<T: Element>(gpu: &Gpu, shape: AttentionShape, masks: &[HeadMask]) -> Result<Self> {
        shape.queries().check(shape.kv_heads)?;
        if shape.q_start > 1 << 20 {
            return Err(CudaError::Shape {
                what: "q_start",
                expected: "at most 1048576",
                got: shape.q_start as usize,
            });
        }
        shape.keys().check(shape.kv_heads)?;
        check_len("masks", shape.kv_heads as usize, masks.len())?;
        // One run whose keys are all fresh. Wide heads come first, so that the last blocks to run are short ones.
        let run = PrefillRun {
            q_start: shape.q_start,
            q_len: shape.q_len,
            ..PrefillRun::default()
        };
        let mut order: Vec<u32> = (0..shape.kv_heads).collect();
        order.sort_by_key(|&head| std::cmp::Reverse(masks[head as usize].span()));
        let items = prefill::items(0, shape.q_len, shape.gqa_group(), order);
        let config = KernelConfig {
            head_dim: shape.head_dim,
            element: T::TYPE,
        };
        let forward = gpu.module(Kernel::AttentionPrefill, config)?;
        let backward = gpu.module(Kernel::AttentionBackward, config)?;
        Ok(Self {
            shape,
            config,
            spans: upload_spans(gpu, masks)?,
            run: gpu.upload(cast_slice(&[run]))?,
            items: gpu.upload(cast_slice(&items))?,
            blocks: u32::try_from(items.len()).unwrap_or(u32::MAX),
            forward: launch::function(
                &forward,
                "attention_prefill",
                prefill::shared_bytes(shape.head_dim),
            )?,
            row_dot: launch::function(&backward, "attention_row_dot", 0)?,
            grad_q: launch::function(&backward, "attention_grad_q", grad_q_bytes(shape.head_dim))?,
            grad_kv: launch::function(
                &backward,
                "attention_grad_kv",
                grad_kv_bytes(shape.head_dim),
            )?,
        })
    }

    /// Writes the output of every head to `out` (q's shape) and lse to `lse` (`[heads, rows]`, natural logarithm).
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn forward<T: Element>(
        &self,
        gpu: &Gpu,
        q: &Buffer<T>,
        k: &Buffer<T>,
        v: &Buffer<T>,
        softmax_scale: f32,
        out: &mut Buffer<T>,
        lse: &mut Buffer<f32>,
    ) -> Result<()> {
        let (shape, queries, keys) = self.check(q, k, v)?;
        check_len("out", queries.elements(), out.len())?;
        check_len("lse", queries.row_values(), lse.len())?;
        let stream = gpu.stream();
        let maps = [
            launch::tile_map(stream, q, queries)?,
            launch::tile_map(stream, k, keys)?,
            launch::tile_map(stream, v, keys)?,
        ];
        launch::launch(
            stream,
            &self.forward,
            "launching attention_prefill",
            Grid {
                blocks: (self.blocks, 1),
                threads: THREADS,
                shared_bytes: prefill::shared_bytes(shape.head_dim),
            },
            &[
                Arg::Map(maps[0]),
                Arg::Map(maps[1]),
                Arg::Map(maps[2]),
                // Nothing is cached: these are never read.
                Arg::Map(maps[1]),
                Arg::Map(maps[2]),
                Arg::read(stream, &self.run),
                Arg::read(stream, &self.spans),
                Arg::read(stream, &self.items),
                Arg::write(stream, out),
                Arg::write(stream, lse),
                Arg::U32(shape.kv_heads),
                Arg::U32(shape.gqa_group()),
                Arg::U32(queries.head_stride()),
                Arg::U32(queries.row_stride()),
                Arg::F32(softmax_scale * std::f32::consts::LOG2_E),
            ],
        )
    }

    /// Writes D, the row sums of `grad_out * out`, to `row_dot` (`[heads, rows]`): what influence and `backward` need.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn row_dot<T: Element>(
        &self,
        gpu: &Gpu,
        out: &Buffer<T>,
        grad_out: &Buffer<T>,
        row_dot: &mut Buffer<f32>,
    ) -> Result<()> {
        let queries = self.shape.queries();
        self.check_type::<T>()?;
        check_len("out", queries.elements(), out.len())?;
        check_len("grad_out", queries.elements(), grad_out.len())?;
        check_len("row_dot", queries.row_values(), row_dot.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.row_dot,
            "launching attention_row_dot",
            Grid {
                blocks: (queries.len.next_multiple_of(64) / 8, queries.heads),
                threads: 256,
                shared_bytes: 0,
            },
            &[
                Arg::read(stream, out),
                Arg::read(stream, grad_out),
                Arg::write(stream, row_dot),
                Arg::U32(queries.len),
                Arg::U32(queries.head_stride()),
                Arg::U32(queries.row_stride()),
            ],
        )
    }

    /// Writes the gradients of q, k and v, from what [`Self::forward`] and [`Self::row_dot`] wrote. The same input gives the same
    /// bytes. Queries must begin at position 0.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Length`] and the driver's.
    pub fn backward<T: Element>(
        &self,
        gpu: &Gpu,
        q: &Buffer<T>,
        k: &Buffer<T>,
        v: &Buffer<T>,
        grad_out: &Buffer<T>,
        lse: &Buffer<f32>,
        row_dot: &Buffer<f32>,
        softmax_scale: f32,
        gradients: AttentionGradients<'_, T>,
    ) -> Result<()> {
        let (shape, queries, keys) = self.check(q, k, v)?;
        if shape.q_start != 0 {
            return Err(CudaError::Shape {
                what: "q_start",
                expected: "0 for gradients",
                got: shape.q_start as usize,
            });
        }
        check_len("grad_out", queries.elements(), grad_out.len())?;
        check_len("lse", queries.row_values(), lse.len())?;
        check_len("row_dot", queries.row_values(), row_dot.len())?;
        check_len("the gradient of q", queries.elements(), gradients.q.len())?;
        check_len("the gradient of k", keys.elements(), gradients.k.len())?;
        check_len("the gradient of v", keys.elements(), gradients.v.len())?;
        let stream = gpu.stream();
        let maps = [
            launch::tile_map(stream, q, queries)?,
            launch::tile_map(stream, k, keys)?,
            launch::tile_map(stream, v, keys)?,
            launch::tile_map(stream, grad_out, queries)?,
        ];
        let tail = |extent: Extent| {
            [
                Arg::U32(shape.q_len),
                Arg::U32(shape.gqa_group()),
                Arg::U32(extent.head_stride()),
                Arg::U32(extent.row_stride()),
                Arg::F32(softmax_scale),
            ]
        };
        let head = || {
            let mut args = maps.map(Arg::Map).into_iter().collect::<Vec<_>>();
            args.extend([
                Arg::read(stream, &self.spans),
                Arg::read(stream, lse),
                Arg::read(stream, row_dot),
            ]);
            args
        };
        let mut args = head();
        args.push(Arg::write(stream, gradients.q));
        args.extend(tail(queries));
        launch::launch(
            stream,
            &self.grad_q,
            "launching attention_grad_q",
            self.grid(grad_q_bytes(shape.head_dim)),
            &args,
        )?;
        let mut args = head();
        args.push(Arg::write(stream, gradients.k));
        args.push(Arg::write(stream, gradients.v));
        args.extend(tail(keys));
        launch::launch(
            stream,
            &self.grad_kv,
            "launching attention_grad_kv",
            Grid {
                blocks: (
                    shape.q_len.div_ceil(64).div_ceil(KV_CONSUMERS),
                    shape.kv_heads,
                ),
                threads: KV_CONSUMERS * 128 + 128,
                shared_bytes: grad_kv_bytes(shape.head_dim),
            },
            &args,
        )
    }

    /// Blocks of 64 query rows a warpgroup.
    fn grid(&self, shared_bytes: u32) -> Grid {
        let slots = self.shape.q_len.div_ceil(64) * self.shape.gqa_group();
        Grid {
            blocks: (slots.div_ceil(CONSUMERS), self.shape.kv_heads),
            threads: CONSUMERS * 128 + 128,
            shared_bytes,
        }
    }

    fn check_type<T: Element>(&self) -> Result<()> {
        if T::TYPE == self.config.element {
            return Ok(());
        }
        Err(CudaError::Shape {
            what: "type of the elements",
            expected: "the one that the kernel was made for",
            got: size_of::<T>(),
        })
    }

    fn check<T: Element>(
        &self,
        q: &Buffer<T>,
        k: &Buffer<T>,
        v: &Buffer<T>,
    ) -> Result<(AttentionShape, Extent, Extent)> {
        self.check_type::<T>()?;
        let (queries, keys) = (self.shape.queries(), self.shape.keys());
        check_len("q", queries.elements(), q.len())?;
        check_len("k", keys.elements(), k.len())?;
        check_len("v", keys.elements(), v.len())?;
        Ok((self.shape, queries, keys))
    }
}

/// Sink and window of each KV head, as kernels over linear keys read them.
pub(crate) fn upload_spans(gpu: &Gpu, masks: &[HeadMask]) -> Result<Buffer<u32>> {
    let limit = 1 << 30; // positions stay far from where u32 wraps around
    let spans: Vec<u32> = masks
        .iter()
        .flat_map(|mask| [mask.sink.min(limit), mask.window.clamp(1, limit), 0, 0])
        .collect();
    gpu.upload(&spans)
}

/// Barriers and room to align the tiles.
const fn beside(stages: u32) -> u32 {
    16 * stages + 8 + 1024
}

fn grad_q_bytes(head_dim: u32) -> u32 {
    let stages = stages(head_dim);
    2 * (CONSUMERS + stages) * operand_bytes(head_dim) + beside(stages)
}

fn grad_kv_bytes(head_dim: u32) -> u32 {
    let tiles = 2 * (KV_CONSUMERS + KV_STAGES) * operand_bytes(head_dim);
    tiles + KV_STAGES * 1024 + beside(KV_STAGES)
}
