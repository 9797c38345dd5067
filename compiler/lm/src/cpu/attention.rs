//! Masked attention of a run of queries, tile by tile with an online softmax.
//!
//! Keys come as runs of consecutive positions, wherever they lie: linear rows, sink slots, the two parts of a
//! wrapped ring. Only tiles that the mask's ranges name are touched. No matrix of scores outlives its tile.

use std::ops::Range;

use moa_mask::{HeadMask, KeyRanges, ranges};
use rayon::prelude::*;

use super::gemm::{Matrix, MatrixMut, Store, Threads, gemm};
use super::simd::{exp_sum, max, vectorized};
use crate::{AttentionShape, KvCache, Projected};

/// Keys whose scores are held at once.
const TILE_K: u32 = 512;

/// Keys and values of consecutive positions, one KV head's.
#[derive(Debug, Clone, Copy)]
struct KeyRun<'a> {
    /// Position of the first key.
    start: u32,
    /// One past the last position.
    end: u32,
    /// Rows of keys, the first one at index 0.
    k: &'a [f32],
    /// Rows of values.
    v: &'a [f32],
    /// Values from one row to the next.
    stride: usize,
}

/// All keys that one KV head's queries may see, in ascending order of positions.
fn key_runs<'a>(
    shape: AttentionShape,
    kv_head: usize,
    mask: HeadMask,
    projected: &Projected<'a, Vec<f32>>,
    cache: Option<&'a KvCache<Vec<f32>>>,
) -> Vec<KeyRun<'a>> {
    let mut runs = Vec::with_capacity(4);
    if let Some(cache) = cache {
        let layout = cache.layouts[kv_head];
        let offset = cache.slot_offsets[kv_head];
        let mut push = |start: u32, slots: Range<u32>| {
            if slots.is_empty() {
                return;
            }
            let first = (offset + slots.start as usize) * shape.head_dim;
            let len = slots.len() * shape.head_dim;
            runs.push(KeyRun {
                start,
                end: start + (slots.end - slots.start),
                k: &cache.k[first..][..len],
                v: &cache.v[first..][..len],
                stride: shape.head_dim,
            });
        };
        let sink_end = layout.sink.min(projected.start);
        push(0, 0..sink_end);
        // What the first query sees is all that any query of the run sees of the ring.
        let first = mask.window_start(projected.start).max(sink_end);
        let [older, newer] = layout.segments(first..projected.start.max(first));
        let older_len = older.end - older.start;
        push(first, older);
        push(first + older_len, newer);
    }
    let rows = u32::try_from(projected.k.len() / shape.kv_dim()).unwrap_or(u32::MAX);
    let offset = kv_head * shape.head_dim;
    runs.push(KeyRun {
        start: projected.start,
        end: projected.start + rows,
        k: &projected.k[offset..],
        v: &projected.v[offset..],
        stride: shape.kv_dim(),
    });
    runs
}

/// Queries that are worked on together: rows `row_stride` apart in `q` and `o`.
struct Tile<'a> {
    /// First value of the first row.
    q: &'a [f32],
    rows: usize,
    row_stride: usize,
    /// Position of the first row; the others follow it, or are at the same one.
    q_pos: u32,
    /// 1, or 0 where all rows are heads of one position.
    pos_step: u32,
    mask: HeadMask,
}

/// What a task reuses from tile to tile.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    row_max: Vec<f32>,
    row_sum: Vec<f64>,
}

/// `o` `[q_len, heads, head_dim]` and `lse` `[q_len, heads]`.
pub(super) fn attention(
    shape: AttentionShape,
    projected: &Projected<'_, Vec<f32>>,
    masks: &[HeadMask],
    cache: Option<&KvCache<Vec<f32>>>,
) -> (Vec<f32>, Vec<f32>) {
    let (heads, head_dim, group) = (shape.heads, shape.head_dim, shape.gqa_group());
    let q_len = projected.q.len() / shape.q_dim();
    let runs: Vec<Vec<KeyRun<'_>>> = (0..shape.kv_heads)
        .map(|kv_head| key_runs(shape, kv_head, masks[kv_head], projected, cache))
        .collect();
    let mut o = vec![0.0; q_len * shape.q_dim()];
    let mut lse = vec![0.0; q_len * heads];
    if q_len == 1 {
        // One position: a KV head's queries are rows of one tile.
        o.par_chunks_mut(group * head_dim)
            .zip(lse.par_chunks_mut(group))
            .enumerate()
            .for_each_init(Scratch::default, |scratch, (kv_head, (o, lse))| {
                let tile = Tile {
                    q: &projected.q[kv_head * group * head_dim..],
                    rows: group,
                    row_stride: head_dim,
                    q_pos: projected.start,
                    pos_step: 0,
                    mask: masks[kv_head],
                };
                attend(shape, &tile, &runs[kv_head], scratch, o, lse, 1);
            });
        return (o, lse);
    }
    let tile_q = if q_len >= 512 { 64 } else { 32 };
    o.par_chunks_mut(tile_q * shape.q_dim())
        .zip(lse.par_chunks_mut(tile_q * heads))
        .enumerate()
        .for_each_init(Scratch::default, |scratch, (index, (o, lse))| {
            let first = index * tile_q;
            let rows = o.len() / shape.q_dim();
            let ahead = u32::try_from(first).unwrap_or(u32::MAX);
            for head in 0..heads {
                let kv_head = head / group;
                let tile = Tile {
                    q: &projected.q[first * shape.q_dim() + head * head_dim..],
                    rows,
                    row_stride: shape.q_dim(),
                    q_pos: projected.start + ahead,
                    pos_step: 1,
                    mask: masks[kv_head],
                };
                attend(
                    shape,
                    &tile,
                    &runs[kv_head],
                    scratch,
                    &mut o[head * head_dim..],
                    &mut lse[head..],
                    heads,
                );
            }
        });
    (o, lse)
}

/// One tile of queries over all of its keys; `o` begins at the tile's first value and holds zeros.
fn attend(
    shape: AttentionShape,
    tile: &Tile<'_>,
    runs: &[KeyRun<'_>],
    scratch: &mut Scratch,
    o: &mut [f32],
    lse: &mut [f32],
    lse_stride: usize,
) {
    let Scratch {
        scores,
        row_max,
        row_sum,
    } = scratch;
    row_max.clear();
    row_max.resize(tile.rows, f32::NEG_INFINITY);
    row_sum.clear();
    row_sum.resize(tile.rows, 0.0);
    let tile_rows = u32::try_from(tile.rows).unwrap_or(u32::MAX);
    let positions = if tile.pos_step == 0 { 1 } else { tile_rows };
    let key_ranges = ranges::prefill(tile.mask, tile.q_pos, positions);
    let KeyRanges { sink, local, inner } = &key_ranges;
    for run in runs {
        for (range, free) in [(sink, 0..tile.q_pos + 1), (local, inner.clone())] {
            let mut start = range.start.max(run.start);
            let end = range.end.min(run.end);
            while start < end {
                let keys = start..end.min(start.saturating_add(TILE_K));
                start = keys.end;
                let edge = keys.start < free.start || keys.end > free.end;
                fold(shape, tile, run, keys, edge, scores, row_max, row_sum, o);
            }
        }
    }
    for row in 0..tile.rows {
        let inverse = to_f32(1.0 / row_sum[row]);
        for value in &mut o[row * tile.row_stride..][..shape.head_dim] {
            *value *= inverse;
        }
        lse[row * lse_stride] = to_f32(f64::from(row_max[row]) + row_sum[row].ln());
    }
}

/// Folds the keys of one run into a tile's running maximum, sum and output.
fn fold(
    shape: AttentionShape,
    tile: &Tile<'_>,
    run: &KeyRun<'_>,
    keys: Range<u32>,
    edge: bool,
    scores: &mut Vec<f32>,
    row_max: &mut [f32],
    row_sum: &mut [f64],
    o: &mut [f32],
) {
    let head_dim = shape.head_dim;
    let width = (keys.end - keys.start) as usize;
    let first = (keys.start - run.start) as usize * run.stride;
    let k = Matrix::new(&run.k[first..], width, head_dim, run.stride);
    let v = Matrix::new(&run.v[first..], width, head_dim, run.stride);
    scores.resize(tile.rows * width, 0.0);
    gemm(
        MatrixMut::new(scores, tile.rows, width, width),
        Store::Set,
        Matrix::new(tile.q, tile.rows, head_dim, tile.row_stride),
        k.t(),
        shape.softmax_scale(),
        Threads::One,
    );
    vectorized(
        #[inline(always)]
        || {
            let mut q_pos = tile.q_pos;
            for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
                if edge {
                    // Between sink and window, and past the query itself.
                    let between =
                        tile.mask.sink.max(keys.start)..tile.mask.window_start(q_pos).min(keys.end);
                    for hidden in [between, keys.start.max(q_pos + 1)..keys.end] {
                        if hidden.start < hidden.end {
                            let (from, to) = (hidden.start - keys.start, hidden.end - keys.start);
                            scores[from as usize..to as usize].fill(f32::NEG_INFINITY);
                        }
                    }
                }
                q_pos += tile.pos_step;
                let new_max = max(scores).max(row_max[row]);
                if new_max == f32::NEG_INFINITY {
                    // Nothing visible yet (or NaN, which shows in the sum).
                    let hidden = scores.iter().all(|&score| score == f32::NEG_INFINITY);
                    scores.fill(if hidden { 0.0 } else { f32::NAN });
                    if !hidden {
                        row_sum[row] = f64::NAN;
                    }
                    continue;
                }
                let rescale = f64::from(row_max[row] - new_max).exp();
                row_sum[row] = row_sum[row] * rescale + exp_sum(scores, new_max);
                row_max[row] = new_max;
                let rescale = to_f32(rescale);
                if rescale != 1.0 {
                    for value in &mut o[row * tile.row_stride..][..head_dim] {
                        *value *= rescale;
                    }
                }
            }
        },
    );
    gemm(
        MatrixMut::new(o, tile.rows, head_dim, tile.row_stride),
        Store::Add,
        Matrix::new(scores, tile.rows, width, width),
        v,
        1.0,
        Threads::One,
    );
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounds to the precision of the buffers"
)]
#[inline(always)]
fn to_f32(x: f64) -> f32 {
    x as f32
}
