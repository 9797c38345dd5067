//! The launcher of prefill attention: chunks of several requests, packed row after row, over their caches and their own keys.

use bytemuck::cast_slice;
use cudarc::driver::CudaFunction;
use moa_mask::abi::{PrefillItem, PrefillRun};

use crate::extent::{Extent, Layout, check_len};
use crate::launch::{self, Arg, Grid};
use crate::slots::{CacheSlots, HeadShape};
use crate::source::{Kernel, KernelConfig, operand_bytes, stages};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// Tiles of 64 queries that share the keys that a block loads.
pub(crate) const CONSUMERS: u32 = Kernel::AttentionPrefill.consumers();

/// Threads of a block: the warpgroups that compute and the one that loads.
pub(crate) const THREADS: u32 = CONSUMERS * 128 + 128;

/// Tiles, barriers, and room to align the tiles.
pub(crate) const fn shared_bytes(head_dim: u32) -> u32 {
    let stages = stages(head_dim);
    (CONSUMERS + 2 * stages) * operand_bytes(head_dim) + 16 * stages + 16 + 1024
}

/// The blocks of one request's `q_len` queries for each of `kv_heads`, in that order; later queries, which see most, first.
pub(crate) fn items(
    request: u32,
    q_len: u32,
    group: u32,
    kv_heads: impl IntoIterator<Item = u32>,
) -> Vec<PrefillItem> {
    let tiles = q_len.div_ceil(64) * group;
    kv_heads
        .into_iter()
        .flat_map(|kv_head| {
            (0..tiles.div_ceil(CONSUMERS))
                .rev()
                .map(move |block| PrefillItem {
                    request,
                    kv_head,
                    first: block * CONSUMERS,
                    reserved: 0,
                })
        })
        .collect()
}

/// A request's share of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPart {
    /// The request, counted from 0.
    pub request: u32,
    /// Tokens that it has cached already: the position of its first row.
    pub start: u32,
    /// Its rows in the chunk.
    pub len: u32,
}

/// Which rows of a packed chunk are whose; every layer shares it.
#[derive(Debug)]
pub struct Chunk {
    shape: HeadShape,
    batch: usize,
    rows: usize,
    items: usize,
    runs: Buffer<u32>,
    item_list: Buffer<u32>,
    pub(crate) positions: Buffer<u32>,
    pub(crate) requests: Buffer<u32>,
    pub(crate) ends: Buffer<u32>,
}

impl Chunk {
    /// Packs `parts`, each of another request of `batch`, row after row in their order.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for an empty part, a request that is not in the batch or is there twice, and the driver's.
    pub fn new(gpu: &Gpu, shape: HeadShape, batch: usize, parts: &[ChunkPart]) -> Result<Self> {
        let mut runs = vec![PrefillRun::default(); batch];
        let mut ends = vec![0u32; batch];
        let (mut list, mut positions, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let wrong = CudaError::Shape {
                what: "a part of a chunk",
                expected: "rows below position 2^30, of a request of the batch, once",
                got: part.request as usize,
            };
            let end = u64::from(part.start) + u64::from(part.len);
            let Some(run) = runs.get_mut(part.request as usize) else {
                return Err(wrong);
            };
            if part.len == 0 || end > 1 << 30 || run.q_len != 0 {
                return Err(wrong);
            }
            let row = u32::try_from(positions.len()).unwrap_or(u32::MAX);
            *run = PrefillRun {
                q_row: row,
                q_start: part.start,
                q_len: part.len,
                k_row: row,
                k_start: part.start,
                ..PrefillRun::default()
            };
            ends[part.request as usize] = part.start + part.len;
            positions.extend(part.start..part.start + part.len);
            requests.extend(std::iter::repeat_n(part.request, part.len as usize));
            list.extend(items(
                part.request,
                part.len,
                shape.gqa_group(),
                0..shape.kv_heads,
            ));
        }
        if positions.is_empty() || positions.len() > 1 << 20 {
            return Err(CudaError::Shape {
                what: "rows of a chunk",
                expected: "1 to 1048576",
                got: positions.len(),
            });
        }
        Ok(Self {
            shape,
            batch,
            rows: positions.len(),
            items: list.len(),
            runs: gpu.upload(cast_slice(&runs))?,
            item_list: gpu.upload(cast_slice(&list))?,
            positions: gpu.upload(&positions)?,
            requests: gpu.upload(&requests)?,
            ends: gpu.upload(&ends)?,
        })
    }

    /// Rows in all.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn check(&self, cache: &CacheSlots) -> Result<()> {
        check_len("the chunk's batch", cache.batch, self.batch)?;
        if cache.shape != self.shape {
            return Err(CudaError::Shape {
                what: "heads of the chunk",
                expected: "those of the cache",
                got: self.shape.heads as usize,
            });
        }
        Ok(())
    }
}

/// Refuses a scratch tensor of a chunk that has not room for its rows.
pub(crate) fn check_rows(what: &'static str, rows: usize, width: usize, got: usize) -> Result<()> {
    if got >= rows * width {
        Ok(())
    } else {
        Err(CudaError::Length {
            what,
            expected: rows * width,
            got,
        })
    }
}

/// Attention of chunks, for one shape of heads.
#[derive(Debug)]
pub struct Prefill {
    shape: HeadShape,
    config: KernelConfig,
    attend: CudaFunction,
}

impl Prefill {
    /// Compiles the kernel.
    ///
    /// # Errors
    /// [`CudaError::Capability`] and those of compiling.
    pub fn new<T: Element>(gpu: &Gpu, shape: HeadShape) -> Result<Self> {
        shape.check_engine()?;
        let config = KernelConfig {
            head_dim: shape.head_dim,
            element: T::TYPE,
        };
        let module = gpu.module(Kernel::AttentionPrefill, config)?;
        Ok(Self {
            shape,
            config,
            attend: launch::function(&module, "attention_prefill", shared_bytes(shape.head_dim))?,
        })
    }

    /// Writes to `out` (`[rows, heads, head_dim]`, like q) what the chunk's queries see: of their requests' caches (`cached`, K and V in
    /// 16 bits) as they were before the chunk, and of the chunk's own `k` and `v` (`[rows, kv_heads, head_dim]`; longer buffers will do).
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Shape`] and the driver's.
    pub fn run<T: Element>(
        &self,
        gpu: &Gpu,
        cache: &CacheSlots,
        chunk: &Chunk,
        q: &Buffer<T>,
        (k, v): (&Buffer<T>, &Buffer<T>),
        cached: (&Buffer<T>, &Buffer<T>),
        softmax_scale: f32,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let shape = self.shape;
        chunk.check(cache)?;
        if T::TYPE != self.config.element || cache.shape != shape {
            return Err(CudaError::Shape {
                what: "type of the elements, or heads",
                expected: "those that the kernel was made for",
                got: size_of::<T>(),
            });
        }
        check_rows("q", chunk.rows, shape.q_dim(), q.len())?;
        check_rows("out", chunk.rows, shape.q_dim(), out.len())?;
        check_rows("k", chunk.rows, shape.kv_dim(), k.len())?;
        check_rows("v", chunk.rows, shape.kv_dim(), v.len())?;
        let head_dim = shape.head_dim as usize;
        check_rows("cached k", cache.slots, head_dim, cached.0.len())?;
        check_rows("cached v", cache.slots, head_dim, cached.1.len())?;
        let extent = |heads: u32, rows: usize| Extent {
            heads,
            len: u32::try_from(rows).unwrap_or(u32::MAX),
            head_dim: shape.head_dim,
            layout: Layout::TokensFirst,
        };
        let (queries, keys) = (
            extent(shape.heads, chunk.rows),
            extent(shape.kv_heads, chunk.rows),
        );
        let slots = extent(1, cache.slots);
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.attend,
            "launching attention_prefill",
            Grid {
                blocks: (u32::try_from(chunk.items).unwrap_or(u32::MAX), 1),
                threads: THREADS,
                shared_bytes: shared_bytes(shape.head_dim),
            },
            &[
                Arg::Map(launch::tile_map(stream, q, queries)?),
                Arg::Map(launch::tile_map(stream, k, keys)?),
                Arg::Map(launch::tile_map(stream, v, keys)?),
                Arg::Map(launch::tile_map(stream, cached.0, slots)?),
                Arg::Map(launch::tile_map(stream, cached.1, slots)?),
                Arg::read(stream, &chunk.runs),
                Arg::read(stream, &cache.spans),
                Arg::read(stream, &chunk.item_list),
                Arg::write(stream, out),
                Arg::null(),
                Arg::U32(shape.kv_heads),
                Arg::U32(shape.gqa_group()),
                Arg::U32(queries.head_stride()),
                Arg::U32(queries.row_stride()),
                Arg::F32(softmax_scale * std::f32::consts::LOG2_E),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_cover_every_tile_of_every_head_once() {
        for (q_len, group) in [(1u32, 1), (64, 3), (65, 7), (1000, 8)] {
            let tiles = q_len.div_ceil(64) * group;
            let list = items(5, q_len, group, [2, 0, 1]);
            for (head, list) in [2, 0, 1].iter().zip(list.chunks(list.len() / 3)) {
                let mut covered = vec![0; tiles as usize];
                for item in list {
                    assert_eq!((item.request, item.kv_head), (5, *head));
                    for tile in item.first..(item.first + CONSUMERS).min(tiles) {
                        covered[tile as usize] += 1;
                    }
                }
                assert!(covered.iter().all(|&count| count == 1));
                assert!(list.windows(2).all(|pair| pair[0].first > pair[1].first));
            }
        }
    }
}
