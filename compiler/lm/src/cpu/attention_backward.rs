//! Backward of masked attention, and the influence of every causal key, in one walk over tiles of rows.
//!
//! Scores and dL/dA are recomputed for all causal keys, because windows wider than the present ones have costs
//! too; gradients only flow where the masks let them. Work is cut by KV head and by a number of parts that
//! does not depend on the machine, and parts are added in order, so that results are the same on any number of
//! threads.

use moa_mask::{HeadMask, ranges};
use rayon::prelude::*;

use super::gemm::{Matrix, MatrixMut, Store, Threads, gemm};
use super::influence::{Row, WindowCosts, Windows};
use super::simd::vectorized;
use crate::{AttentionBackward, AttentionShape, Estimator, LayerInfluence};

/// Rows worked on together.
const TILE_Q: usize = 64;
/// Pieces of work that a layer gives at least.
const LEAST_TASKS: usize = 16;

/// Gradients in the shapes of their inputs, and the influence.
pub(super) struct Backward {
    pub(super) d_q: Vec<f32>,
    pub(super) d_k: Vec<f32>,
    pub(super) d_v: Vec<f32>,
    pub(super) influence: LayerInfluence,
}

/// What one task gives: every `parts`-th tile of rows of one KV head's query heads.
struct Part {
    /// `[tile of the part, head of the group, TILE_Q, head_dim]`.
    d_q: Vec<f32>,
    /// `[len, head_dim]`.
    d_k: Vec<f32>,
    d_v: Vec<f32>,
    costs: WindowCosts,
    /// `[head of the group, side, side]`, or empty.
    abs: Vec<f64>,
    signed: Vec<f64>,
}

/// What a task reuses from tile to tile.
#[derive(Default)]
struct Scratch {
    /// Scores, then A: `[TILE_Q, width]`.
    a: Vec<f32>,
    /// dL/dA, then dL/dscores: `[TILE_Q, width]`.
    d_a: Vec<f32>,
    /// Per-entry influence of a row, where maps are wanted.
    e: Vec<f32>,
}

/// What all tasks share.
struct Layer<'a> {
    inputs: &'a AttentionBackward<'a, Vec<f32>>,
    len: usize,
    windows: Windows,
    parts: usize,
    /// Block maps: side of a block and blocks along a side.
    map: Option<(usize, usize)>,
}

pub(super) fn attention_backward(inputs: &AttentionBackward<'_, Vec<f32>>) -> Backward {
    let shape = inputs.shape;
    let len = inputs.projected.q.len() / shape.q_dim();
    let block = inputs.grid.block() as usize;
    let layer = Layer {
        inputs,
        len,
        windows: Windows {
            sink: inputs.grid.sink() as usize,
            block,
            bins: len.div_ceil(block),
            per_entry: inputs.per_entry || inputs.blocks.is_some(),
        },
        parts: LEAST_TASKS.div_ceil(shape.kv_heads),
        map: inputs.blocks.map(|block| (block, len.div_ceil(block))),
    };
    let parts: Vec<Part> = (0..shape.kv_heads * layer.parts)
        .into_par_iter()
        .map_init(Scratch::default, |scratch, task| {
            layer.part(task / layer.parts, task % layer.parts, scratch)
        })
        .collect();
    layer.gather(&parts)
}

impl Layer<'_> {
    fn part(&self, kv_head: usize, part: usize, scratch: &mut Scratch) -> Part {
        let AttentionShape { head_dim, .. } = self.inputs.shape;
        let group = self.inputs.shape.gqa_group();
        let tiles = self.tiles_of(part);
        let cells = self.map.map_or(0, |(_, side)| side * side);
        let mut result = Part {
            d_q: vec![0.0; tiles.len() * group * TILE_Q * head_dim],
            d_k: vec![0.0; self.len * head_dim],
            d_v: vec![0.0; self.len * head_dim],
            costs: WindowCosts::new(self.windows),
            abs: vec![0.0; group * cells],
            signed: vec![0.0; group * cells],
        };
        for (slot, first) in tiles.enumerate() {
            for member in 0..group {
                let d_q = &mut result.d_q[(slot * group + member) * TILE_Q * head_dim..]
                    [..TILE_Q * head_dim];
                let cells = member * cells..(member + 1) * cells;
                let (abs, signed) = (&mut result.abs[cells.clone()], &mut result.signed[cells]);
                self.tile(
                    kv_head,
                    kv_head * group + member,
                    first,
                    scratch,
                    d_q,
                    &mut result.d_k,
                    &mut result.d_v,
                    &mut result.costs,
                    abs,
                    signed,
                );
            }
        }
        result
    }

    /// First rows of a part's tiles: every `parts`-th one, since later tiles have more keys.
    fn tiles_of(&self, part: usize) -> impl ExactSizeIterator<Item = usize> {
        (part * TILE_Q..self.len).step_by(self.parts * TILE_Q)
    }

    /// Rows `[first, first + TILE_Q)` of one query head.
    fn tile(
        &self,
        kv_head: usize,
        head: usize,
        first: usize,
        scratch: &mut Scratch,
        d_q: &mut [f32],
        d_k: &mut [f32],
        d_v: &mut [f32],
        costs: &mut WindowCosts,
        abs: &mut [f64],
        signed: &mut [f64],
    ) {
        let shape = self.inputs.shape;
        let AttentionShape {
            heads, head_dim, ..
        } = shape;
        let (q_dim, kv_dim, scale) = (shape.q_dim(), shape.kv_dim(), shape.softmax_scale());
        let rows = TILE_Q.min(self.len - first);
        // All causal keys of the last row; those past a row's own position are zeroed.
        let width = first + rows;
        let at = first * q_dim + head * head_dim;
        let q = Matrix::new(&self.inputs.projected.q[at..], rows, head_dim, q_dim);
        let d_o = Matrix::new(&self.inputs.d_o[at..], rows, head_dim, q_dim);
        let (k, v) = (
            &self.inputs.projected.k[kv_head * head_dim..],
            &self.inputs.projected.v[kv_head * head_dim..],
        );
        let Scratch { a, d_a, e } = scratch;
        a.resize(rows * width, 0.0);
        d_a.resize(rows * width, 0.0);
        for (product, left, right, factor) in [(&mut *a, q, k, scale), (&mut *d_a, d_o, v, 1.0)] {
            let right = Matrix::new(right, width, head_dim, kv_dim).t();
            gemm(
                MatrixMut::new(product, rows, width, width),
                Store::Set,
                left,
                right,
                factor,
                Threads::One,
            );
        }
        e.resize(if self.map.is_some() { width } else { 0 }, 0.0);
        let mask = self.inputs.masks[kv_head];
        vectorized(
            #[inline(always)]
            || {
                for (row, (a, d_a)) in a
                    .chunks_exact_mut(width)
                    .zip(d_a.chunks_exact_mut(width))
                    .enumerate()
                {
                    let pos = first + row;
                    let lse = self.inputs.lse[pos * heads + head];
                    costs.row(Row { pos, mask, lse }, a, d_a, e);
                    a[pos + 1..].fill(0.0);
                    d_a[pos + 1..].fill(0.0);
                    if let Some((block, side)) = self.map {
                        for (column, e) in e[..=pos].chunks(block).enumerate() {
                            let cell = pos / block * side + column;
                            for &e in e {
                                abs[cell] += f64::from(e.abs());
                                signed[cell] += f64::from(e);
                            }
                        }
                    }
                }
            },
        );
        self.flow(mask, first, rows, a, d_a, (q, d_o), k, (d_q, d_k, d_v));
    }

    /// Gradients through the keys that the tile sees.
    fn flow(
        &self,
        mask: HeadMask,
        first: usize,
        rows: usize,
        a: &[f32],
        d_scores: &[f32],
        (q, d_o): (Matrix<'_>, Matrix<'_>),
        k: &[f32],
        (d_q, d_k, d_v): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let shape = self.inputs.shape;
        let AttentionShape { head_dim, .. } = shape;
        let (kv_dim, scale) = (shape.kv_dim(), shape.softmax_scale());
        let width = first + rows;
        let to_u32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let seen = ranges::prefill(mask, to_u32(first), to_u32(rows));
        for range in [seen.sink, seen.local] {
            let (start, keys) = (range.start as usize, range.len());
            if keys == 0 {
                continue;
            }
            let a = Matrix::new(&a[start..], rows, keys, width);
            let d_scores = Matrix::new(&d_scores[start..], rows, keys, width);
            let k = Matrix::new(&k[start * kv_dim..], keys, head_dim, kv_dim);
            let of_keys = start * head_dim..(start + keys) * head_dim;
            let d_q = MatrixMut::new(d_q, rows, head_dim, head_dim);
            gemm(d_q, Store::Add, d_scores, k, scale, Threads::One);
            let d_k = MatrixMut::new(&mut d_k[of_keys.clone()], keys, head_dim, head_dim);
            gemm(d_k, Store::Add, d_scores.t(), q, scale, Threads::One);
            let d_v = MatrixMut::new(&mut d_v[of_keys], keys, head_dim, head_dim);
            gemm(d_v, Store::Add, a.t(), d_o, 1.0, Threads::One);
        }
    }

    /// Adds the parts in order and puts rows where they belong.
    fn gather(&self, parts: &[Part]) -> Backward {
        let shape = self.inputs.shape;
        let AttentionShape {
            kv_heads, head_dim, ..
        } = shape;
        let (group, q_dim, kv_dim) = (shape.gqa_group(), shape.q_dim(), shape.kv_dim());
        let mut d_q = vec![0.0; self.len * q_dim];
        let mut d_k = vec![0.0; self.len * kv_dim];
        let mut d_v = vec![0.0; self.len * kv_dim];
        let mut influence = LayerInfluence {
            curves: std::array::from_fn(|_| Vec::with_capacity(kv_heads * self.windows.bins)),
            abs: Vec::new(),
            signed: Vec::new(),
        };
        debug_assert_eq!(influence.curves.len(), Estimator::ALL.len());
        for (kv_head, parts) in parts.chunks(self.parts).enumerate() {
            let mut costs = WindowCosts::new(self.windows);
            let cells = parts.first().map_or(0, |part| part.abs.len());
            let (mut abs, mut signed) = (vec![0.0; cells], vec![0.0; cells]);
            for (index, part) in parts.iter().enumerate() {
                costs.merge(&part.costs);
                add(&mut abs, &part.abs);
                add(&mut signed, &part.signed);
                for (sums, part) in [(&mut d_k, &part.d_k), (&mut d_v, &part.d_v)] {
                    for (row, part) in sums
                        .chunks_exact_mut(kv_dim)
                        .zip(part.chunks_exact(head_dim))
                    {
                        for (sum, part) in row[kv_head * head_dim..].iter_mut().zip(part) {
                            *sum += part;
                        }
                    }
                }
                for (slot, first) in self.tiles_of(index).enumerate() {
                    for member in 0..group {
                        let tile = &part.d_q[(slot * group + member) * TILE_Q * head_dim..]
                            [..TILE_Q * head_dim];
                        let at = (kv_head * group + member) * head_dim;
                        for (row, values) in (first..self.len).zip(tile.chunks_exact(head_dim)) {
                            d_q[row * q_dim + at..][..head_dim].copy_from_slice(values);
                        }
                    }
                }
            }
            for (all, curve) in influence.curves.iter_mut().zip(costs.curves()) {
                all.extend(curve);
            }
            influence.abs.extend(abs);
            influence.signed.extend(signed);
        }
        Backward {
            d_q,
            d_k,
            d_v,
            influence,
        }
    }
}

fn add(to: &mut [f64], from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}
