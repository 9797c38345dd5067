//! The launcher of decode attention: a static, balanced work list for a ragged batch, made once on the host.

use bytemuck::cast_slice;
use cudarc::driver::CudaFunction;
use moa_mask::KvFormat;
use moa_mask::abi::DecodeItem;

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::slots::{CacheSlots, HeadShape, KvBuffers};
use crate::source::{DECODE_STAGES, Kernel, KernelConfig, decode_blocks};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// Query heads that one item serves at most: rows of a tensor core product.
const HEADS_PER_ITEM: u32 = 8;

/// Fewest keys of a part that is worth a block of its own.
const LEAST_KEYS: u64 = 128;

/// Parts of one head from which on another one costs more than it gains.
const MOST_JOINED: u64 = 48;

/// What blocks of one multiprocessor may share.
const MULTIPROCESSOR_BYTES: u32 = 227 << 10;

/// The items, and whose each is. The parts of a run of heads follow one another.
#[derive(Debug, Clone, Default, PartialEq)]
struct WorkList {
    requests: Vec<u32>,
    items: Vec<DecodeItem>,
}

/// The fewest keys of a part with which there are no more parts in all than `blocks` blocks at a time take.
fn chunk(lengths: &[u64], runs: u64, blocks: u64) -> u64 {
    let limit = most_parts(lengths.len() as u64 * runs, blocks);
    let (mut low, mut high) = (
        LEAST_KEYS,
        lengths.iter().copied().max().unwrap_or(0).max(LEAST_KEYS),
    );
    while low < high {
        let middle = u64::midpoint(low, high);
        let parts: u64 = lengths
            .iter()
            .map(|&keys| keys.div_ceil(middle).max(1) * runs)
            .sum();
        if parts <= limit {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// How many parts are worth while in all. Where heads alone are nearly as many as blocks, four times the blocks: the last of several waves is
/// then a small part.
fn most_parts(heads: u64, blocks: u64) -> u64 {
    let all = blocks.max(1);
    if heads * 4 > all {
        (4 * all).max(heads)
    } else {
        all
    }
}

/// Blocks that share a multiprocessor. Where heads are few, a fourth costs more to join than it gains (docs/measurements.md).
fn blocks_of(heads: u64, multiprocessors: u32, format: KvFormat) -> u32 {
    let most = decode_blocks(format);
    if u64::from(multiprocessors * most) > MOST_JOINED * heads {
        most.min(3)
    } else {
        most
    }
}

/// Shared memory of a block, so much that no more than `blocks` share a multiprocessor: the scheduler would put more on some and fewer on
/// others.
fn shared_of(head_dim: u32, format: KvFormat, blocks: u32) -> u32 {
    let one_more = MULTIPROCESSOR_BYTES / (blocks + 1);
    shared_bytes(head_dim, format).max(one_more.next_multiple_of(128))
}

/// Cuts every request's KV heads into parts of about the same number of keys, so that all of the device's `blocks` have work.
/// `lengths` are the keys of each request's KV heads.
fn work_list(shape: HeadShape, lengths: &[u64], blocks: u64) -> WorkList {
    let group = shape.gqa_group();
    let runs = u64::from(group.div_ceil(HEADS_PER_ITEM));
    let chunk = chunk(lengths, runs, blocks);
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let mut list = WorkList::default();
    // Long parts first, so that the last blocks to run are the short ones.
    let mut order: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(index, &keys)| {
            let (request, kv_head) = (
                index / shape.kv_heads as usize,
                index % shape.kv_heads as usize,
            );
            let parts = keys.div_ceil(chunk).max(1);
            (
                std::cmp::Reverse(keys.div_ceil(parts)),
                count(request),
                count(kv_head),
                u32::try_from(parts).unwrap_or(u32::MAX),
            )
        })
        .collect();
    order.sort_unstable();
    for (_, request, kv_head, parts) in order {
        for first in (0..group).step_by(HEADS_PER_ITEM as usize) {
            for part in 0..parts {
                list.requests.push(request);
                list.items.push(DecodeItem {
                    kv_head,
                    first_head: kv_head * group + first,
                    part,
                    parts,
                });
            }
        }
    }
    list
}

/// Bytes on their way: 16 keys of K and of V a warp and stage, 4 warps; for caches of bytes their scales too.
const fn shared_bytes(head_dim: u32, format: KvFormat) -> u32 {
    let stage = match format {
        KvFormat::Sixteen => 16 * 2 * 2 * head_dim,
        KvFormat::Int8 => 16 * 2 * (head_dim + 4),
    };
    DECODE_STAGES * 4 * stage
}

/// Decode attention of one layer for a batch whose caches lie where they lie.
#[derive(Debug)]
pub struct Decode {
    shape: HeadShape,
    config: KernelConfig,
    format: KvFormat,
    shared_bytes: u32,
    items: usize,
    decode: CudaFunction,
    requests: Buffer<u32>,
    item_list: Buffer<u32>,
}

/// Room for the parts of as many items as the largest of some [`Decode`]s has; layers that run one after another share it.
#[derive(Debug)]
pub struct DecodeWorkspace {
    partials: Buffer<f32>,
    stats: Buffer<f32>,
    arrivals: Buffer<u32>,
}

impl DecodeWorkspace {
    /// Allocates for `layers`.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] and the driver's others.
    pub fn new<'a>(gpu: &Gpu, layers: impl IntoIterator<Item = &'a Decode>) -> Result<Self> {
        let (mut items, mut head_dim) = (0, 0);
        for layer in layers {
            items = items.max(layer.items);
            head_dim = head_dim.max(layer.shape.head_dim as usize);
        }
        let rows = items * HEADS_PER_ITEM as usize;
        Ok(Self {
            partials: gpu.zeros(rows * head_dim)?,
            stats: gpu.zeros(rows * 2)?,
            arrivals: gpu.zeros(items)?,
        })
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        4 * (self.partials.len() + self.stats.len() + self.arrivals.len())
    }
}

impl Decode {
    /// Compiles the kernel, makes the work list and uploads it.
    ///
    /// # Errors
    /// Those of compiling, and the driver's.
    pub fn new<T: Element>(gpu: &Gpu, cache: &CacheSlots, format: KvFormat) -> Result<Self> {
        let shape = cache.shape;
        shape.check_engine()?;
        let multiprocessors = gpu.info().multiprocessors;
        let heads = cache.lengths.len() as u64;
        let blocks = blocks_of(heads, multiprocessors, format);
        let shared_bytes = shared_of(shape.head_dim, format, blocks);
        let list = work_list(shape, &cache.lengths, u64::from(multiprocessors * blocks));
        let config = KernelConfig {
            head_dim: shape.head_dim,
            element: T::TYPE,
        };
        let module = gpu.module(Kernel::attention_decode(format), config)?;
        Ok(Self {
            shape,
            config,
            format,
            shared_bytes,
            items: list.items.len(),
            // One function for every layer, whatever each of them takes.
            decode: launch::function(
                &module,
                "attention_decode",
                shared_of(shape.head_dim, format, 1),
            )?,
            requests: gpu.upload(&list.requests)?,
            item_list: gpu.upload(cast_slice(&list.items))?,
        })
    }

    /// Writes to `out` (`[batch, heads, head_dim]`, like q) what each request's query sees. `lens` counts the tokens
    /// written to each cache, the query's own among them; it is read on the device. A request of 0 tokens gets zeros.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn run<T: Element>(
        &self,
        gpu: &Gpu,
        cache: &CacheSlots,
        workspace: &mut DecodeWorkspace,
        q: &Buffer<T>,
        kv: &KvBuffers<T>,
        lens: &Buffer<u32>,
        softmax_scale: f32,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let shape = self.shape;
        let queries = cache.batch * shape.q_dim();
        check_len("q", queries, q.len())?;
        check_len("out", queries, out.len())?;
        check_len("lens", cache.batch, lens.len())?;
        kv.check(self.format, cache.slots, shape.head_dim)?;
        if T::TYPE != self.config.element || cache.shape != shape {
            return Err(CudaError::Shape {
                what: "type of the elements, or heads",
                expected: "those that the kernel was made for",
                got: size_of::<T>(),
            });
        }
        let rows = self.items * HEADS_PER_ITEM as usize;
        if workspace.partials.len() < rows * shape.head_dim as usize
            || workspace.arrivals.len() < self.items
        {
            return Err(CudaError::Length {
                what: "the workspace",
                expected: rows * shape.head_dim as usize,
                got: workspace.partials.len(),
            });
        }
        let stream = gpu.stream();
        let (k, v, scales) = match kv {
            KvBuffers::Sixteen { k, v } => {
                (Arg::read(stream, k), Arg::read(stream, v), Arg::null())
            }
            KvBuffers::Int8 { k, v, scales } => (
                Arg::read(stream, k),
                Arg::read(stream, v),
                Arg::read(stream, scales),
            ),
        };
        launch::launch_early(
            stream,
            &self.decode,
            "launching attention_decode",
            Grid {
                blocks: (u32::try_from(self.items).unwrap_or(u32::MAX), 1),
                threads: 128,
                shared_bytes: self.shared_bytes,
            },
            &[
                Arg::read(stream, q),
                k,
                v,
                scales,
                Arg::read(stream, &cache.spans),
                Arg::read(stream, lens),
                Arg::read(stream, &self.requests),
                Arg::read(stream, &self.item_list),
                Arg::write(stream, &mut workspace.partials),
                Arg::write(stream, &mut workspace.stats),
                Arg::write(stream, &mut workspace.arrivals),
                Arg::write(stream, out),
                Arg::U32(shape.heads),
                Arg::U32(shape.kv_heads),
                Arg::U32(shape.gqa_group()),
                Arg::F32(softmax_scale * std::f32::consts::LOG2_E),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_heads_have_fewer_blocks_and_no_more_than_fit() {
        let int8 = |heads| blocks_of(heads, 132, KvFormat::Int8);
        assert_eq!([8, 32, 512].map(int8), [3, 4, 4]);
        assert_eq!(blocks_of(8, 132, KvFormat::Sixteen), 2);
        assert_eq!(
            [32, 512, 5000].map(|heads| most_parts(heads, 528)),
            [528, 2112, 5000]
        );
        for (format, blocks) in [
            (KvFormat::Sixteen, 2),
            (KvFormat::Int8, 3),
            (KvFormat::Int8, 4),
        ] {
            for head_dim in [64, 128] {
                // Each block takes 1 KiB besides.
                let bytes = shared_of(head_dim, format, blocks) + 1024;
                let fit = (MULTIPROCESSOR_BYTES + 1024) / bytes;
                assert_eq!(fit, blocks, "{format:?} {head_dim}");
            }
        }
    }

    #[test]
    fn every_head_has_all_its_parts_and_parts_are_even() {
        for (heads, kv_heads) in [(1, 1), (32, 8), (32, 2), (9, 3), (28, 4)] {
            let shape = HeadShape {
                heads,
                kv_heads,
                head_dim: 64,
            };
            let lengths: Vec<u64> = [100u64, 5000, 20_000]
                .iter()
                .flat_map(|&context| {
                    (0..kv_heads).map(move |head| context.min(128 + 512 * u64::from(head)))
                })
                .collect();
            let list = work_list(shape, &lengths, 264);
            let heads_alone = 3 * kv_heads * (heads / kv_heads).div_ceil(HEADS_PER_ITEM);
            let limit = if heads_alone * 4 > 264 { 4 * 264 } else { 264 };
            assert!(list.items.len() <= limit as usize);
            assert_eq!(list.requests.len(), list.items.len());
            // Every query head of every request is served once by every part of its keys.
            let mut served = vec![Vec::new(); 3 * heads as usize];
            for (at, (item, &request)) in list.items.iter().zip(&list.requests).enumerate() {
                assert_eq!(item.first_head / (heads / kv_heads), item.kv_head);
                let begin = at - item.part as usize;
                assert_eq!(list.items[begin].part, 0, "parts follow one another");
                assert_eq!(list.items[begin].first_head, item.first_head);
                assert_eq!(list.requests[begin], request);
                let group = heads / kv_heads;
                let rows = HEADS_PER_ITEM.min(group - item.first_head % group);
                for row in 0..rows {
                    served[(request * heads + item.first_head + row) as usize]
                        .push((item.part, item.parts));
                }
            }
            for parts in served {
                let expected: Vec<_> = (0..parts[0].1).map(|part| (part, parts[0].1)).collect();
                assert_eq!(parts, expected);
            }
        }
    }
}
