//! The launcher of decode attention: a static, balanced work list for a ragged batch, made once on the host.

use bytemuck::cast_slice;
use cudarc::driver::CudaFunction;
use moa_mask::abi::{DecodeItem, HeadParts, HeadSpan};
use moa_mask::{HeadMask, RingLayout};

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::source::{DECODE_STAGES, Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// Query heads that one item serves at most: rows of a tensor core product.
const HEADS_PER_ITEM: u32 = 8;

/// Fewest keys of a part that is worth a block of its own.
const LEAST_KEYS: u64 = 128;

/// One layer's heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeShape {
    /// Query heads.
    pub heads: u32,
    /// KV heads; divides `heads`.
    pub kv_heads: u32,
    /// Channels of a head: 64 or 128.
    pub head_dim: u32,
}

/// One request's cache in a layer's buffers: for each KV head a mask, its ring, and its first slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeRequest {
    /// By KV head.
    pub heads: Vec<(HeadMask, RingLayout, u32)>,
}

/// The items and where each head's parts lie.
#[derive(Debug, Clone, Default, PartialEq)]
struct WorkList {
    requests: Vec<u32>,
    items: Vec<DecodeItem>,
    heads: Vec<HeadParts>,
}

/// The fewest keys of a part with which there are no more than `blocks` parts in all. Where heads alone are nearly as many, four
/// times the blocks: the last of several waves is then a small part.
fn chunk(lengths: &[u64], runs: u64, blocks: u32) -> u64 {
    let heads = lengths.len() as u64 * runs;
    let blocks = u64::from(blocks.max(1));
    let limit = if heads * 4 > blocks {
        (4 * blocks).max(heads)
    } else {
        blocks
    };
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

/// Cuts every request's KV heads into parts of about the same number of keys, so that `blocks` blocks have work.
fn work_list(shape: DecodeShape, requests: &[DecodeRequest], blocks: u32) -> WorkList {
    let group = shape.heads / shape.kv_heads;
    let runs = u64::from(group.div_ceil(HEADS_PER_ITEM));
    let keys = |mask: &HeadMask, layout: &RingLayout| {
        u64::from(mask.window.min(layout.ring)) + u64::from(layout.sink)
    };
    let lengths: Vec<u64> = requests
        .iter()
        .flat_map(|request| &request.heads)
        .map(|(mask, layout, _)| keys(mask, layout))
        .collect();
    let chunk = chunk(&lengths, runs, blocks);
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let mut list = WorkList::default();
    // Long parts first, so that the last blocks to run are the short ones.
    let mut order = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        for (kv_head, (mask, layout, _)) in request.heads.iter().enumerate() {
            let parts = keys(mask, layout).div_ceil(chunk).max(1);
            let share = keys(mask, layout).div_ceil(parts);
            order.push((
                std::cmp::Reverse(share),
                count(index),
                count(kv_head),
                u32::try_from(parts).unwrap_or(u32::MAX),
            ));
        }
    }
    order.sort_unstable();
    list.heads = vec![HeadParts::default(); requests.len() * shape.heads as usize];
    for (_, request, kv_head, parts) in order {
        for first in (0..group).step_by(HEADS_PER_ITEM as usize) {
            let begin = count(list.items.len());
            let first_head = kv_head * group + first;
            for part in 0..parts {
                list.requests.push(request);
                list.items.push(DecodeItem {
                    kv_head,
                    first_head,
                    part,
                    parts,
                });
            }
            for row in 0..HEADS_PER_ITEM.min(group - first) {
                let head = request as usize * shape.heads as usize + (first_head + row) as usize;
                list.heads[head] = HeadParts {
                    first: begin * HEADS_PER_ITEM + row,
                    stride: HEADS_PER_ITEM,
                    parts,
                    reserved: 0,
                };
            }
        }
    }
    list
}

/// Bytes on their way: 16 keys of K and of V a warp and stage, 4 warps.
const fn shared_bytes(head_dim: u32) -> u32 {
    DECODE_STAGES * 4 * 16 * 2 * 2 * head_dim
}

/// Decode attention of one layer for a batch whose caches lie where they lie.
#[derive(Debug)]
pub struct Decode {
    shape: DecodeShape,
    config: KernelConfig,
    batch: usize,
    slots: usize,
    items: u32,
    decode: CudaFunction,
    join: CudaFunction,
    spans: Buffer<u32>,
    requests: Buffer<u32>,
    item_list: Buffer<u32>,
    head_parts: Buffer<u32>,
    partials: Buffer<f32>,
}

impl Decode {
    /// Compiles the kernels, makes the work list and uploads it. `slots` are the slots in the layer's K and V buffers.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for heads without a kernel or caches outside the buffers, and those of compiling.
    pub fn new<T: Element>(
        gpu: &Gpu,
        shape: DecodeShape,
        requests: &[DecodeRequest],
        slots: usize,
    ) -> Result<Self> {
        let refuse = |what, expected, got: usize| {
            Err(CudaError::Shape {
                what,
                expected,
                got,
            })
        };
        if shape.kv_heads == 0 || shape.heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
            return refuse(
                "heads",
                "a multiple of kv_heads, at least 1",
                shape.heads as usize,
            );
        }
        if ![64, 128].contains(&shape.head_dim) {
            return refuse("head_dim", "64 or 128", shape.head_dim as usize);
        }
        if requests.is_empty() || requests.len() > 65_535 {
            return refuse("batch", "1 to 65535", requests.len());
        }
        let mut spans = Vec::new();
        for request in requests {
            check_len(
                "a request's heads",
                shape.kv_heads as usize,
                request.heads.len(),
            )?;
            for &(mask, layout, slot_offset) in &request.heads {
                let end = u64::from(slot_offset) + u64::from(layout.sink) + u64::from(layout.ring);
                if end > slots as u64 {
                    return refuse(
                        "a head's last slot",
                        "inside the buffers",
                        usize::try_from(end).unwrap_or(usize::MAX),
                    );
                }
                if layout.slots() == 0 || layout.slots() > 1 << 30 || mask.window == 0 {
                    return refuse(
                        "a head's slots",
                        "1 to 2^30, of a window of at least 1",
                        layout.slots() as usize,
                    );
                }
                spans.push(HeadSpan {
                    sink: layout.sink,
                    window: mask.window,
                    ring: layout.ring,
                    slot_offset,
                });
            }
        }
        // Two blocks run at a time on a multiprocessor.
        let list = work_list(shape, requests, gpu.info().multiprocessors * 2);
        let config = KernelConfig {
            head_dim: shape.head_dim,
            element: T::TYPE,
        };
        let module = gpu.module(Kernel::AttentionDecode, config)?;
        let rows = list.items.len() * HEADS_PER_ITEM as usize;
        Ok(Self {
            shape,
            config,
            batch: requests.len(),
            slots,
            items: u32::try_from(list.items.len()).unwrap_or(u32::MAX),
            decode: launch::function(&module, "attention_decode", shared_bytes(shape.head_dim))?,
            join: launch::function(&module, "attention_decode_join", 0)?,
            spans: gpu.upload(cast_slice(&spans))?,
            requests: gpu.upload(&list.requests)?,
            item_list: gpu.upload(cast_slice(&list.items))?,
            head_parts: gpu.upload(cast_slice(&list.heads))?,
            partials: gpu.zeros(rows * (shape.head_dim as usize + 2))?,
        })
    }

    /// Writes to `out` (`[batch, heads, head_dim]`, like q) what each request's query sees. `lens` counts the tokens
    /// written to each cache, the query's own among them.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn run<T: Element>(
        &mut self,
        gpu: &Gpu,
        q: &Buffer<T>,
        k: &Buffer<T>,
        v: &Buffer<T>,
        lens: &Buffer<u32>,
        softmax_scale: f32,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let shape = self.shape;
        let head_dim = shape.head_dim as usize;
        let queries = self.batch * shape.heads as usize * head_dim;
        check_len("q", queries, q.len())?;
        check_len("out", queries, out.len())?;
        check_len("k", self.slots * head_dim, k.len())?;
        check_len("v", self.slots * head_dim, v.len())?;
        check_len("lens", self.batch, lens.len())?;
        if T::TYPE != self.config.element {
            return Err(CudaError::Shape {
                what: "type of the elements",
                expected: "the one that the kernel was made for",
                got: size_of::<T>(),
            });
        }
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.decode,
            "launching attention_decode",
            Grid {
                blocks: (self.items, 1),
                threads: 128,
                shared_bytes: shared_bytes(shape.head_dim),
            },
            &[
                Arg::read(stream, q),
                Arg::read(stream, k),
                Arg::read(stream, v),
                Arg::read(stream, &self.spans),
                Arg::read(stream, lens),
                Arg::read(stream, &self.requests),
                Arg::read(stream, &self.item_list),
                Arg::write(stream, &mut self.partials),
                Arg::U32(shape.heads),
                Arg::U32(shape.kv_heads),
                Arg::U32(shape.heads / shape.kv_heads),
                Arg::F32(softmax_scale * std::f32::consts::LOG2_E),
            ],
        )?;
        let count = u32::try_from(self.batch).unwrap_or(u32::MAX) * shape.heads;
        launch::launch(
            stream,
            &self.join,
            "launching attention_decode_join",
            Grid {
                blocks: (count, 1),
                threads: 128,
                shared_bytes: 0,
            },
            &[
                Arg::read(stream, &self.partials),
                Arg::read(stream, &self.head_parts),
                Arg::write(stream, out),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_has_all_its_parts_and_parts_are_even() {
        for (heads, kv_heads) in [(1, 1), (32, 8), (32, 2), (9, 3), (28, 4)] {
            let shape = DecodeShape {
                heads,
                kv_heads,
                head_dim: 64,
            };
            let requests: Vec<DecodeRequest> = [100, 5000, 20_000]
                .map(|context| DecodeRequest {
                    heads: (0..kv_heads)
                        .map(|head| {
                            let mask = HeadMask::from_span(128 + 512 * head, 64);
                            (mask, RingLayout::new(mask, context, 64), 0)
                        })
                        .collect(),
                })
                .to_vec();
            let list = work_list(shape, &requests, 264);
            let heads_alone = 3 * kv_heads * (heads / kv_heads).div_ceil(HEADS_PER_ITEM);
            let limit = if heads_alone * 4 > 264 { 4 * 264 } else { 264 };
            assert!(list.items.len() <= limit as usize);
            assert_eq!(list.requests.len(), list.items.len());
            assert_eq!(list.heads.len(), 3 * heads as usize);
            for (index, head) in list.heads.iter().enumerate() {
                let index = u32::try_from(index).unwrap();
                let (request, head_index) = (index / heads, index % heads);
                for part in 0..head.parts {
                    let row = head.first + part * head.stride;
                    let item = (row / HEADS_PER_ITEM) as usize;
                    assert_eq!(list.requests[item], request);
                    let found = list.items[item];
                    assert_eq!((found.part, found.parts), (part, head.parts));
                    assert_eq!(found.first_head + row % HEADS_PER_ITEM, head_index);
                    assert_eq!(found.kv_head, head_index / (heads / kv_heads));
                }
            }
        }
    }
}
