//! Row by row: from scores and dL/dA to A, dL/dscores and what every window would cost.
//!
//! Of one row, A is the softmax of its visible scores, g = dL/dA, D = sum of A g. A row is cut into pieces
//! where a wider window would reveal more keys, each with its own maximum m, `sum = sum of exp(score - m)` and
//! `dot = sum of exp(score - m) g`. Everything else follows from the pieces, in f64:
//!
//! - keeping only the keys K costs `(sum over K of A g) / (sum over K of A) - D`; K grows from the sink leftwards
//!   from the diagonal, both sums scaled by the largest m so far;
//! - hiding one entry costs `A (D - g) / (1 - A)`, with `1 - A` always the sum of the others. For the largest
//!   entry of a row, D - g would cancel as well; its cost is `A * ((mean of g over the others) - g)`.
//!
//! It deliberately knows neither heads nor tiles: `attention_backward` does.

use moa_mask::HeadMask;

use super::simd::{exp_sum_dot, max, sum_dot};
use crate::Estimator;

/// Entries with `1 - A` below this count 0: nothing else is left in the row.
const LEAST_REST: f64 = 1e-12;

/// The spans whose costs are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    /// First keys that every window keeps.
    pub(super) sink: usize,
    /// Step of spans.
    pub(super) block: usize,
    /// Number of spans.
    pub(super) bins: usize,
    /// Whether the costs of single entries are wanted.
    pub(super) per_entry: bool,
}

impl Windows {
    /// Most recent keys that span number `bin` keeps beside the sink.
    fn window(self, bin: usize) -> usize {
        (self.block * (bin + 1)).saturating_sub(self.sink).max(1)
    }
}

/// Keys that become visible together and are all visible or all hidden now.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    end: usize,
    /// The first bin whose window shows them; none for the sink.
    bin: Option<usize>,
    /// Whether the masks of this run show them.
    visible: bool,
    max: f32,
    sum: f64,
    dot: f64,
}

/// Two sums of positive terms, scaled by the largest exponent seen.
#[derive(Debug, Clone, Copy)]
struct Sums {
    max: f32,
    sum: f64,
    dot: f64,
}

impl Sums {
    const NONE: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
        dot: 0.0,
    };

    #[inline(always)]
    fn add(&mut self, max: f32, sum: f64, dot: f64) {
        if max > self.max {
            let factor = f64::from(self.max - max).exp();
            self.sum = self.sum * factor + sum;
            self.dot = self.dot * factor + dot;
            self.max = max;
        } else {
            let factor = f64::from(max - self.max).exp();
            self.sum += factor * sum;
            self.dot += factor * dot;
        }
    }

    /// Mean of g over the keys, weighted by A.
    #[inline(always)]
    fn mean(&self) -> f64 {
        self.dot / self.sum
    }
}

/// Sums over rows of one KV head, for every bin.
#[derive(Debug, Clone)]
pub(super) struct WindowCosts {
    windows: Windows,
    /// Magnitudes of per-entry influence, by the bin that first shows the entry.
    shown_at: Vec<f64>,
    signed: Vec<f64>,
    abs: Vec<f64>,
    square: Vec<f64>,
    /// Rows whose window has everything from this bin on: what they add to it and to all later ones.
    tail_signed: Vec<f64>,
    tail_abs: Vec<f64>,
    tail_square: Vec<f64>,
    pieces: Vec<Piece>,
}

/// What a row's pass needs to know of the row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Position of the query; the row has `pos + 1` keys.
    pub(super) pos: usize,
    /// The masks that the model runs under.
    pub(super) mask: HeadMask,
    /// Log-sum-exp of the visible scores, from the forward pass.
    pub(super) lse: f32,
}

impl WindowCosts {
    pub(super) fn new(windows: Windows) -> Self {
        let zeros = || vec![0.0; windows.bins];
        Self {
            windows,
            shown_at: zeros(),
            signed: zeros(),
            abs: zeros(),
            square: zeros(),
            tail_signed: zeros(),
            tail_abs: zeros(),
            tail_square: zeros(),
            pieces: Vec::new(),
        }
    }

    /// Turns scores `s` into A and dL/dA `g` into dL/dscores, both zero where the mask hides the key, and adds
    /// the row's costs. `e` receives per-entry influence where it is wanted; otherwise it is empty.
    #[inline(always)]
    pub(super) fn row(&mut self, row: Row, s: &mut [f32], g: &mut [f32], e: &mut [f32]) {
        self.cut(row);
        let mut visible = Sums::NONE;
        for piece in &mut self.pieces {
            let range = piece.start..piece.end;
            piece.max = max(&s[range.clone()]);
            (piece.sum, piece.dot) = exp_sum_dot(&mut s[range.clone()], &g[range], piece.max);
            if piece.visible {
                visible.add(piece.max, piece.sum, piece.dot);
            }
        }
        let lse = f64::from(visible.max) + visible.sum.ln();
        debug_assert!(
            lse.is_nan() || (lse - f64::from(row.lse)).abs() <= 1e-3 * (1.0 + lse.abs()),
            "forward and backward see the same keys: {lse} {}",
            row.lse
        );
        let d = visible.mean();
        self.entries(&visible, d, s, g, e);
        self.joint(d);
    }

    /// Cuts the row's keys: the sink first, then from the diagonal to the left.
    #[inline(always)]
    fn cut(&mut self, row: Row) {
        let len = row.pos + 1;
        let Windows { sink, .. } = self.windows;
        let position = u32::try_from(row.pos).unwrap_or(u32::MAX);
        let hidden =
            (row.mask.sink as usize).min(len)..(row.mask.window_start(position) as usize).min(len);
        self.pieces.clear();
        let sink_end = sink.min(len);
        self.push(0, sink_end, None, &hidden);
        let mut right = len;
        let mut bin = 0;
        while right > sink_end {
            let left = len.saturating_sub(self.windows.window(bin)).max(sink_end);
            self.push(left, right, Some(bin), &hidden);
            right = left;
            bin += 1;
        }
    }

    /// Adds the keys `[start, end)`, cut where they pass into or out of what is hidden now.
    #[inline(always)]
    fn push(
        &mut self,
        start: usize,
        end: usize,
        bin: Option<usize>,
        hidden: &std::ops::Range<usize>,
    ) {
        let from = hidden.start.clamp(start, end);
        let to = hidden.end.clamp(from, end);
        for (start, end, visible) in [(start, from, true), (from, to, false), (to, end, true)] {
            if start < end {
                self.pieces.push(Piece {
                    start,
                    end,
                    bin,
                    visible,
                    max: f32::NEG_INFINITY,
                    sum: 0.0,
                    dot: 0.0,
                });
            }
        }
    }

    /// Per-entry influence, A and dL/dscores. `s` holds exponentials relative to each piece's maximum.
    #[inline(always)]
    fn entries(&mut self, visible: &Sums, d: f64, s: &mut [f32], g: &mut [f32], e: &mut [f32]) {
        let top = self
            .pieces
            .iter()
            .position(|piece| piece.visible && piece.max == visible.max)
            .unwrap_or(0);
        let top_piece = self.pieces[top];
        let largest = (top_piece.start..top_piece.end)
            .find(|&key| s[key] == 1.0)
            .unwrap_or(top_piece.start);
        let mut others = Sums::NONE;
        for (index, piece) in self.pieces.iter().enumerate() {
            if piece.visible && index != top {
                others.add(piece.max, piece.sum, piece.dot);
            }
        }
        for part in [top_piece.start..largest, largest + 1..top_piece.end] {
            let (sum, dot) = sum_dot(&s[part.clone()], &g[part]);
            others.add(top_piece.max, sum, dot);
        }
        // Relative to the row's maximum, where the largest entry is 1.
        let rest = others.sum * f64::from(others.max - visible.max).exp();
        let largest_a = 1.0 / (1.0 + rest);
        let rest_share = rest / (1.0 + rest);
        // Mean of g over the others, less g of the largest entry; nothing to compare with in a row of one key.
        let lead = if rest > 0.0 {
            others.mean() - f64::from(g[largest])
        } else {
            0.0
        };
        let largest_e = if rest_share < LEAST_REST {
            0.0
        } else {
            largest_a * lead
        };
        let largest_ds = -largest_a * rest_share * lead;
        s[largest] = 0.0;

        let d32 = to_f32(d);
        for piece in &self.pieces {
            let range = piece.start..piece.end;
            // The row's sum relative to the piece's maximum: at least what the piece adds to it.
            let total = to_f32(visible.sum * f64::from(visible.max - piece.max).exp());
            let (s, g) = (&mut s[range.clone()], &mut g[range.clone()]);
            let e = if e.is_empty() {
                &mut [][..]
            } else {
                &mut e[range]
            };
            let magnitude = match (piece.visible, self.windows.per_entry) {
                (true, true) => entries_shown::<true>(s, g, e, total, d32),
                (true, false) => entries_shown::<false>(s, g, e, total, d32),
                (false, true) => entries_hidden(s, g, e, total, d32),
                (false, false) => {
                    s.fill(0.0);
                    g.fill(0.0);
                    0.0
                }
            };
            if let Some(bin) = piece.bin {
                self.shown_at[bin] += f64::from(magnitude);
            }
        }
        s[largest] = to_f32(largest_a);
        g[largest] = to_f32(largest_ds);
        if let Some(e) = e.get_mut(largest) {
            *e = to_f32(largest_e);
        }
        if let Some(bin) = top_piece.bin {
            self.shown_at[bin] += largest_e.abs();
        }
    }

    /// The cost of keeping the sink and ever more keys from the diagonal on.
    #[inline(always)]
    fn joint(&mut self, d: f64) {
        let mut kept = Sums::NONE;
        let last = self.pieces.last().and_then(|piece| piece.bin).unwrap_or(0);
        let mut pieces = self.pieces.iter().peekable();
        while let Some(piece) = pieces.next_if(|piece| piece.bin.is_none()) {
            kept.add(piece.max, piece.sum, piece.dot);
        }
        for bin in 0..last {
            while let Some(piece) = pieces.next_if(|piece| piece.bin == Some(bin)) {
                kept.add(piece.max, piece.sum, piece.dot);
            }
            let cost = kept.mean() - d;
            self.signed[bin] += cost;
            self.abs[bin] += cost.abs();
            self.square[bin] += cost * cost;
        }
        for piece in pieces {
            kept.add(piece.max, piece.sum, piece.dot);
        }
        let cost = kept.mean() - d;
        self.tail_signed[last] += cost;
        self.tail_abs[last] += cost.abs();
        self.tail_square[last] += cost * cost;
    }

    /// Adds the sums of another part of the same head's rows.
    pub(super) fn merge(&mut self, other: &Self) {
        let add = |to: &mut [f64], from: &[f64]| {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        };
        add(&mut self.shown_at, &other.shown_at);
        add(&mut self.signed, &other.signed);
        add(&mut self.abs, &other.abs);
        add(&mut self.square, &other.square);
        add(&mut self.tail_signed, &other.tail_signed);
        add(&mut self.tail_abs, &other.tail_abs);
        add(&mut self.tail_square, &other.tail_square);
    }

    /// The curve of each of [`Estimator::ALL`]; the first is empty if the costs of single entries are not wanted.
    pub(super) fn curves(&self) -> [Vec<f64>; Estimator::ALL.len()] {
        let with_tail = |here: &[f64], tail: &[f64]| -> Vec<f64> {
            let mut sum = 0.0;
            here.iter()
                .zip(tail)
                .map(|(here, tail)| {
                    sum += tail;
                    here + sum
                })
                .collect()
        };
        let mut per_entry = Vec::new();
        if self.windows.per_entry {
            per_entry.resize(self.windows.bins, 0.0);
            let mut hidden = 0.0;
            for bin in (0..self.windows.bins).rev() {
                per_entry[bin] = hidden;
                hidden += self.shown_at[bin];
            }
        }
        let signed = with_tail(&self.signed, &self.tail_signed);
        let abs = with_tail(&self.abs, &self.tail_abs);
        let square = with_tail(&self.square, &self.tail_square);
        let positive = signed
            .iter()
            .zip(&abs)
            .map(|(signed, abs)| (signed + abs) / 2.0)
            .collect();
        [per_entry, abs, signed, positive, square]
    }
}

/// Of visible entries: `p` becomes A, `g` becomes A (g - D), `e` the influence if it is wanted; returns the sum of magnitudes.
#[inline(always)]
fn entries_shown<const INFLUENCE: bool>(
    p: &mut [f32],
    g: &mut [f32],
    e: &mut [f32],
    total: f32,
    d: f32,
) -> f32 {
    let inverse = 1.0 / total;
    each(p, g, e, |p, g| {
        let a = p * inverse;
        let lead = d - g;
        let influence = if INFLUENCE {
            p * lead / (total - p)
        } else {
            0.0
        };
        (a, -(a * lead), influence)
    })
}

/// Of hidden entries: `p` and `g` become 0; the influence is that of hiding the entry again once it was shown,
/// when it has a share of `p / (total + p)`.
#[inline(always)]
fn entries_hidden(p: &mut [f32], g: &mut [f32], e: &mut [f32], total: f32, d: f32) -> f32 {
    let total = total.max(f32::MIN_POSITIVE);
    each(p, g, e, |p, g| (0.0, 0.0, p * (d - g) / (total + p)))
}

#[inline(always)]
fn each(
    p: &mut [f32],
    g: &mut [f32],
    e: &mut [f32],
    entry: impl Fn(f32, f32) -> (f32, f32, f32),
) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    if e.is_empty() {
        let mut p_chunks = p.chunks_exact_mut(LANES);
        let mut g_chunks = g.chunks_exact_mut(LANES);
        for (p, g) in (&mut p_chunks).zip(&mut g_chunks) {
            for lane in 0..LANES {
                let influence;
                (p[lane], g[lane], influence) = entry(p[lane], g[lane]);
                lanes[lane] += influence.abs();
            }
        }
        let rest = p_chunks
            .into_remainder()
            .iter_mut()
            .zip(g_chunks.into_remainder());
        for (lane, (p, g)) in rest.enumerate() {
            let influence;
            (*p, *g, influence) = entry(*p, *g);
            lanes[lane] += influence.abs();
        }
    } else {
        for (lane, ((p, g), e)) in p.iter_mut().zip(g).zip(e).enumerate() {
            (*p, *g, *e) = entry(*p, *g);
            lanes[lane % LANES] += e.abs();
        }
    }
    lanes.iter().sum()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounds to the precision of the buffers"
)]
#[inline(always)]
fn to_f32(x: f64) -> f32 {
    x as f32
}
