//! Operations that work row by row: `rms_norm`, rope, swiglu, and their backward.

use rayon::prelude::*;

use super::simd::{dot, exp, vectorized};
use crate::Turn;

/// Values that one task takes, so that short runs do not pay for threads.
const TASK: usize = 16 * 1024;

fn rows_per_task(dim: usize) -> usize {
    TASK.div_ceil(dim.max(1))
}

pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let dim = weight.len();
    let mut y = vec![0.0; x.len()];
    let task = rows_per_task(dim) * dim;
    y.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
                        let scale = to_f32(inverse_rms(x, eps));
                        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                            *y = x * scale * weight;
                        }
                    }
                },
            );
        });
    y
}

/// `d_x` comes in as the addend.
pub(super) fn rms_norm_backward(x: &[f32], weight: &[f32], d_y: &[f32], eps: f64, d_x: &mut [f32]) {
    let dim = weight.len();
    let task = rows_per_task(dim) * dim;
    d_x.par_chunks_mut(task)
        .zip(x.par_chunks(task).zip(d_y.par_chunks(task)))
        .for_each(|(d_x, (x, d_y))| {
            let mut direct = vec![0.0f32; dim];
            vectorized(
                #[inline(always)]
                || {
                    for ((d_x, x), d_y) in d_x
                        .chunks_exact_mut(dim)
                        .zip(x.chunks_exact(dim))
                        .zip(d_y.chunks_exact(dim))
                    {
                        for ((direct, d_y), weight) in direct.iter_mut().zip(d_y).zip(weight) {
                            *direct = d_y * weight;
                        }
                        let scale = inverse_rms(x, eps);
                        let along = to_f32(dot(&direct, x) * scale * scale / count(dim));
                        let scale = to_f32(scale);
                        for ((d_x, x), direct) in d_x.iter_mut().zip(x).zip(&direct) {
                            *d_x += scale * (direct - x * along);
                        }
                    }
                },
            );
        });
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f64) -> f64 {
    1.0 / (dot(x, x) / count(x.len()) + eps).sqrt()
}

/// `cos` and `sin` are `[positions, head_dim / 2]`, `x` is `[positions, heads, head_dim]`.
pub(super) fn rope(
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    turn: Turn,
) {
    let half = head_dim / 2;
    let sign = match turn {
        Turn::Forward => 1.0,
        Turn::Backward => -1.0,
    };
    let rows = rows_per_task(heads * head_dim);
    x.par_chunks_mut(rows * heads * head_dim)
        .zip(cos.par_chunks(rows * half).zip(sin.par_chunks(rows * half)))
        .for_each(|(x, (cos, sin))| {
            vectorized(
                #[inline(always)]
                || {
                    for ((x, cos), sin) in x
                        .chunks_exact_mut(heads * head_dim)
                        .zip(cos.chunks_exact(half))
                        .zip(sin.chunks_exact(half))
                    {
                        for head in x.chunks_exact_mut(head_dim) {
                            let (low, high) = head.split_at_mut(half);
                            for (((low, high), cos), sin) in
                                low.iter_mut().zip(high).zip(cos).zip(sin)
                            {
                                let (a, b, sin) = (*low, *high, sin * sign);
                                *low = a * cos - b * sin;
                                *high = b * cos + a * sin;
                            }
                        }
                    }
                },
            );
        });
}

pub(super) fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(TASK)
        .zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK)))
        .for_each(|(y, (gate, up))| {
            vectorized(
                #[inline(always)]
                || {
                    for ((y, &gate), up) in y.iter_mut().zip(gate).zip(up) {
                        *y = gate * sigmoid(gate) * up;
                    }
                },
            );
        });
    y
}

/// Overwrites `gate` with dL/dgate and `up` with dL/dup.
pub(super) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d_y: &[f32]) {
    gate.par_chunks_mut(TASK)
        .zip(up.par_chunks_mut(TASK).zip(d_y.par_chunks(TASK)))
        .for_each(|(gate, (up, d_y))| {
            vectorized(
                #[inline(always)]
                || {
                    for ((gate, up), d_y) in gate.iter_mut().zip(up).zip(d_y) {
                        let sigma = sigmoid(*gate);
                        let silu = *gate * sigma;
                        let d_gate = d_y * *up * (sigma + silu * (1.0 - sigma));
                        *up = d_y * silu;
                        *gate = d_gate;
                    }
                },
            );
        });
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[expect(clippy::cast_precision_loss, reason = "a dimension, far below 2^53")]
fn count(n: usize) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounds to the precision of the buffers"
)]
#[inline(always)]
fn to_f32(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use moa_reference::compare::{Tolerance, compare};
    use moa_reference::{rms_norm as norm_twin, rope as rope_twin, swiglu as swiglu_twin};

    use super::*;

    const TOLERANCE: Tolerance = Tolerance::new(2e-6, 2e-6); // measured 3e-7

    fn wave(len: usize, step: f32, size: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin() * size).collect()
    }

    #[test]
    fn rms_norm_and_its_backward_are_the_twins() {
        for (rows, dim) in [(1, 1), (3, 7), (40, 576), (2, 4096)] {
            let (x, weight, d_y) = (
                wave(rows * dim, 0.37, 3.0),
                wave(dim, 0.11, 1.5),
                wave(rows * dim, 0.23, 1.0),
            );
            let y = rms_norm(&x, &weight, 1e-5);
            compare(&y, &norm_twin::rms_norm(&x, &weight, 1e-5), TOLERANCE).assert("rms_norm");
            let mut d_x = vec![1.0; x.len()];
            rms_norm_backward(&x, &weight, &d_y, 1e-5, &mut d_x);
            let expected: Vec<f64> = norm_twin::rms_norm_backward(&x, &weight, &d_y, 1e-5)
                .iter()
                .map(|d| d + 1.0)
                .collect();
            compare(&d_x, &expected, TOLERANCE).assert("rms_norm_backward");
            d_x[0] += 1e-4;
            assert!(!compare(&d_x, &expected, TOLERANCE).passed());
        }
    }

    #[test]
    fn rope_is_the_twin() {
        let config = moa_format::RopeConfig {
            theta: 1e4,
            scaling: None,
        };
        let positions: Vec<u32> = (1000..1300).collect();
        let (heads, head_dim) = (3, 64);
        let x = wave(positions.len() * heads * head_dim, 0.77, 2.0);
        let (cos, sin) = config.cos_sin(64, positions.iter().copied());
        for (turn, backward) in [(Turn::Forward, false), (Turn::Backward, true)] {
            let mut y = x.clone();
            rope(&mut y, heads, head_dim, &cos, &sin, turn);
            let expected = rope_twin::rope(&x, &positions, heads, &config.inv_freq(64), backward);
            compare(&y, &expected, TOLERANCE).assert("rope");
            let other = rope_twin::rope(&x, &positions, heads, &config.inv_freq(64), !backward);
            assert!(!compare(&y, &other, TOLERANCE).passed());
        }
    }

    #[test]
    fn swiglu_and_its_backward_are_the_twins() {
        let len = 40_000;
        let (mut gate, mut up, d_y) = (
            wave(len, 0.37, 30.0),
            wave(len, 0.11, 2.0),
            wave(len, 0.23, 1.0),
        );
        gate[5] = -200.0;
        gate[6] = 200.0;
        let expected = swiglu_twin::swiglu(&gate, &up);
        compare(&swiglu(&gate, &up), &expected, TOLERANCE).assert("swiglu");
        let (d_gate, d_up) = swiglu_twin::swiglu_backward(&gate, &up, &d_y);
        swiglu_backward(&mut gate, &mut up, &d_y);
        let slack = Tolerance::new(5e-6, 2e-6); // 1 - sigma cancels: measured 4e-6 at gate * up of 60
        compare(&gate, &d_gate, slack).assert("d_gate");
        compare(&up, &d_up, TOLERANCE).assert("d_up");
    }
}
