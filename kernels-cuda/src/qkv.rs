//! The launcher of what lies between projections and attention: biases, RoPE, and rows on their way into caches.

use cudarc::driver::CudaFunction;
use moa_mask::KvFormat;

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::prefill::{Chunk, check_rows};
use crate::slots::{CacheSlots, HeadShape, KvBuffers};
use crate::source::{Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// What RoPE and biases are made of.
#[derive(Debug, Clone, Copy)]
pub struct QkvTables<'a> {
    /// `[positions, head_dim / 2]` of cosine and sine.
    pub angles: &'a Buffer<f32>,
    /// `[heads + 2 kv_heads, head_dim]`, where the model has biases.
    pub bias: Option<&'a Buffer<f32>>,
}

/// Kernels on rows of queries, keys and values, for one shape of heads and one way to keep caches.
#[derive(Debug)]
pub struct QkvRows {
    shape: HeadShape,
    config: KernelConfig,
    format: KvFormat,
    split: CudaFunction,
    append: CudaFunction,
    commit: CudaFunction,
    widen: Option<CudaFunction>,
}

impl QkvRows {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a `head_dim` that is neither 64 nor 128, and those of compiling.
    pub fn new<T: Element>(gpu: &Gpu, shape: HeadShape, format: KvFormat) -> Result<Self> {
        shape.check_engine()?;
        let config = KernelConfig {
            head_dim: shape.head_dim,
            element: T::TYPE,
        };
        let module = gpu.module(Kernel::qkv_rows(format), config)?;
        Ok(Self {
            shape,
            config,
            format,
            split: launch::function(&module, "qkv_split", 0)?,
            append: launch::function(&module, "qkv_append", 0)?,
            commit: launch::function(&module, "qkv_commit", 0)?,
            widen: match format {
                KvFormat::Sixteen => None,
                KvFormat::Int8 => Some(launch::function(&module, "qkv_widen", 0)?),
            },
        })
    }

    fn check<T: Element>(
        &self,
        rows: usize,
        x: &Buffer<T>,
        tables: QkvTables<'_>,
        q: &Buffer<T>,
    ) -> Result<()> {
        let shape = self.shape;
        let width = shape.q_dim() + 2 * shape.kv_dim();
        if T::TYPE != self.config.element {
            return Err(CudaError::Shape {
                what: "type of the elements",
                expected: "the one that the kernel was made for",
                got: size_of::<T>(),
            });
        }
        check_rows("the projections", rows, width, x.len())?;
        check_rows("q", rows, shape.q_dim(), q.len())?;
        if let Some(bias) = tables.bias {
            check_len("the biases", width, bias.len())?;
        }
        check_rows(
            "the table of angles",
            1,
            shape.head_dim as usize,
            tables.angles.len(),
        )
    }

    fn grid(&self, rows: usize) -> Grid {
        let all = self.shape.heads + 2 * self.shape.kv_heads;
        Grid {
            blocks: (u32::try_from(rows).unwrap_or(u32::MAX), all.div_ceil(4)),
            threads: 128,
            shared_bytes: 0,
        }
    }

    /// Splits a chunk's projections `x` (`[rows, heads + 2 kv_heads, head_dim]`) into q, k and v, biases added, q and k rotated. The table
    /// of angles reaches every position of the chunk.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Shape`] and the driver's, as of everything here.
    pub fn split<T: Element>(
        &self,
        gpu: &Gpu,
        chunk: &Chunk,
        x: &Buffer<T>,
        tables: QkvTables<'_>,
        q: &mut Buffer<T>,
        (k, v): (&mut Buffer<T>, &mut Buffer<T>),
    ) -> Result<()> {
        let rows = chunk.rows();
        self.check(rows, x, tables, q)?;
        check_rows("k", rows, self.shape.kv_dim(), k.len())?;
        check_rows("v", rows, self.shape.kv_dim(), v.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.split,
            "launching qkv_split",
            self.grid(rows),
            &[
                Arg::read(stream, x),
                tables
                    .bias
                    .map_or_else(Arg::null, |bias| Arg::read(stream, bias)),
                Arg::read(stream, tables.angles),
                Arg::read(stream, &chunk.positions),
                Arg::write(stream, q),
                Arg::write(stream, k),
                Arg::write(stream, v),
                Arg::U32(self.shape.heads),
                Arg::U32(self.shape.kv_heads),
            ],
        )
    }

    /// One token of every request: q as of [`split`](Self::split), k and v straight to their slots. `lens` counts each cache's tokens,
    /// this one among them; a request of 0 is left alone. The table of angles reaches every position.
    ///
    /// # Errors
    /// See [`split`](Self::split).
    pub fn append<T: Element>(
        &self,
        gpu: &Gpu,
        cache: &CacheSlots,
        x: &Buffer<T>,
        tables: QkvTables<'_>,
        lens: &Buffer<u32>,
        q: &mut Buffer<T>,
        kv: &mut KvBuffers<T>,
    ) -> Result<()> {
        let rows = cache.batch;
        self.check(rows, x, tables, q)?;
        check_len("lens", rows, lens.len())?;
        kv.check(self.format, cache.slots, self.shape.head_dim)?;
        let stream = gpu.stream();
        let mut args = vec![
            Arg::read(stream, x),
            tables
                .bias
                .map_or_else(Arg::null, |bias| Arg::read(stream, bias)),
            Arg::read(stream, tables.angles),
            Arg::read(stream, lens),
            Arg::write(stream, q),
            Arg::read(stream, &cache.spans),
        ];
        args.extend(written(stream, kv));
        args.extend([Arg::U32(self.shape.heads), Arg::U32(self.shape.kv_heads)]);
        launch::launch(
            stream,
            &self.append,
            "launching qkv_append",
            self.grid(rows),
            &args,
        )
    }

    /// A chunk's keys and values to their slots, after its attention: sink keys, and of each request the last that fit its rings.
    ///
    /// # Errors
    /// See [`split`](Self::split).
    pub fn commit<T: Element>(
        &self,
        gpu: &Gpu,
        cache: &CacheSlots,
        chunk: &Chunk,
        (k, v): (&Buffer<T>, &Buffer<T>),
        kv: &mut KvBuffers<T>,
    ) -> Result<()> {
        let rows = chunk.rows();
        chunk.check(cache)?;
        check_rows("k", rows, self.shape.kv_dim(), k.len())?;
        check_rows("v", rows, self.shape.kv_dim(), v.len())?;
        kv.check(self.format, cache.slots, self.shape.head_dim)?;
        let stream = gpu.stream();
        let mut args = vec![
            Arg::read(stream, k),
            Arg::read(stream, v),
            Arg::read(stream, &chunk.positions),
            Arg::read(stream, &chunk.requests),
            Arg::read(stream, &chunk.ends),
            Arg::read(stream, &cache.spans),
        ];
        args.extend(written(stream, kv));
        args.push(Arg::U32(self.shape.kv_heads));
        launch::launch(
            stream,
            &self.commit,
            "launching qkv_commit",
            Grid {
                blocks: (
                    u32::try_from(rows).unwrap_or(u32::MAX),
                    self.shape.kv_heads.div_ceil(2),
                ),
                threads: 128,
                shared_bytes: 0,
            },
            &args,
        )
    }

    /// A layer's cache of bytes in 16 bits, for prefill: `k` and `v` have room for all slots.
    ///
    /// # Errors
    /// See [`split`](Self::split); also when the cache has 16 bits already.
    pub fn widen<T: Element>(
        &self,
        gpu: &Gpu,
        cache: &CacheSlots,
        kv: &KvBuffers<T>,
        (k, v): (&mut Buffer<T>, &mut Buffer<T>),
    ) -> Result<()> {
        let head_dim = self.shape.head_dim as usize;
        kv.check(KvFormat::Int8, cache.slots, self.shape.head_dim)?;
        check_rows("k", cache.slots, head_dim, k.len())?;
        check_rows("v", cache.slots, head_dim, v.len())?;
        let (
            Some(widen),
            KvBuffers::Int8 {
                k: k_bytes,
                v: v_bytes,
                scales,
            },
        ) = (&self.widen, kv)
        else {
            return Err(CudaError::Shape {
                what: "bits of a cached value",
                expected: "8",
                got: 16,
            });
        };
        let stream = gpu.stream();
        let slots = u32::try_from(cache.slots).unwrap_or(u32::MAX);
        launch::launch(
            stream,
            widen,
            "launching qkv_widen",
            Grid {
                blocks: (slots.div_ceil(2), 1),
                threads: 128,
                shared_bytes: 0,
            },
            &[
                Arg::read(stream, k_bytes),
                Arg::read(stream, v_bytes),
                Arg::read(stream, scales),
                Arg::write(stream, k),
                Arg::write(stream, v),
                Arg::U32(slots),
            ],
        )
    }
}

/// A cache as three arguments of a kernel that writes it.
fn written<'a, T: Element>(
    stream: &std::sync::Arc<cudarc::driver::CudaStream>,
    kv: &'a mut KvBuffers<T>,
) -> [Arg<'a>; 3] {
    match kv {
        KvBuffers::Sixteen { k, v } => [Arg::write(stream, k), Arg::write(stream, v), Arg::null()],
        KvBuffers::Int8 { k, v, scales } => [
            Arg::write(stream, k),
            Arg::write(stream, v),
            Arg::write(stream, scales),
        ],
    }
}
