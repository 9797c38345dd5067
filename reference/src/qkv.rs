//! Twin of `qkv`: norm, the three projections with their biases, and the rotation of queries and keys, of one token.

use crate::project::{Norm, normalized};

/// One projection: `[rows, cols]` and a bias of `[rows]` or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// The matrix.
    pub weights: &'a [f64],
    /// The bias.
    pub bias: Option<&'a [f32]>,
}

/// What comes out, rotated where it is rotated, not rounded to what a cache stores.
#[derive(Debug, Clone, PartialEq)]
pub struct Qkv {
    /// `[heads, head_dim]`.
    pub q: Vec<f64>,
    /// `[kv_heads, head_dim]`.
    pub k: Vec<f64>,
    /// `[kv_heads, head_dim]`, not rotated.
    pub v: Vec<f64>,
}

/// `x` `[cols]` at `position`; queries, keys and values in that order; `inv_freq` has `head_dim / 2` entries.
pub fn qkv(
    x: &[f32],
    norm: Norm<'_>,
    [q, k, v]: [Projection<'_>; 3],
    position: u32,
    inv_freq: &[f64],
) -> Qkv {
    let project = |projection: Projection<'_>| {
        let mut y = normalized(x, Some(norm), projection.weights);
        for (y, bias) in y.iter_mut().zip(projection.bias.into_iter().flatten()) {
            *y += f64::from(*bias);
        }
        y
    };
    let rotate = |mut y: Vec<f64>| {
        let half = inv_freq.len();
        for head in y.chunks_exact_mut(2 * half) {
            for pair in 0..half {
                let (sin, cos) = (f64::from(position) * inv_freq[pair]).sin_cos();
                let (low, high) = (head[pair], head[half + pair]);
                head[pair] = low * cos - high * sin;
                head[half + pair] = high * cos + low * sin;
            }
        }
        y
    };
    Qkv {
        q: rotate(project(q)),
        k: rotate(project(k)),
        v: project(v),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::rope;

    #[test]
    fn the_rotation_is_ropes() {
        let norm = Norm {
            weight: &[1.0, 1.0],
            eps: 0.0,
        };
        let (q_weights, bias) = (
            [1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.5, 0.5],
            [0.0, 2.0, 0.0, -1.0],
        );
        let projection = Projection {
            weights: &q_weights,
            bias: Some(&bias),
        };
        let out = qkv(&[3.0, -3.0], norm, [projection; 3], 7, &[1.0, 0.01]);
        let plain = [1.0f32, 3.0, 0.0, -1.0];
        assert_eq!(out.v, plain.map(f64::from));
        for (q, rotated) in out.q.iter().zip(rope(&plain, &[7], 1, &[1.0, 0.01], false)) {
            assert!((q - rotated).abs() < 1e-12);
        }
        assert_eq!(out.q, out.k);
    }
}
