//! Twin of `qkv_rows`: biases and RoPE of packed rows, and rows as bytes with a scale.
//!
//! Which slot a row belongs to is `kv_commit`'s. Bytes are defined in f32, since they must come out equal.

use crate::attention_prefill::AttentionShape;
use crate::rope::rope;

/// Queries, keys and values of packed rows.
#[derive(Debug, Clone, PartialEq)]
pub struct QkvRows {
    /// `[rows, heads, head_dim]`.
    pub q: Vec<f64>,
    /// `[rows, kv_heads, head_dim]`.
    pub k: Vec<f64>,
    /// `[rows, kv_heads, head_dim]`.
    pub v: Vec<f64>,
}

/// Splits `x` `[rows, heads + 2 kv_heads, head_dim]`: `bias` (one row, or empty) is added, queries and keys are rotated by
/// `position * inv_freq`.
pub fn qkv_rows(
    shape: AttentionShape,
    x: &[f32],
    bias: &[f32],
    positions: &[u32],
    inv_freq: &[f64],
) -> QkvRows {
    let (q_dim, kv_dim) = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    );
    let width = q_dim + 2 * kv_dim;
    let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for t in 0..positions.len() {
        let row: Vec<f32> = (0..width)
            .map(|i| x[t * width + i] + bias.get(i).copied().unwrap_or(0.0))
            .collect();
        q.extend_from_slice(&row[..q_dim]);
        k.extend_from_slice(&row[q_dim..q_dim + kv_dim]);
        v.extend(row[q_dim + kv_dim..].iter().map(|&x| f64::from(x)));
    }
    QkvRows {
        q: rope(&q, positions, shape.heads, inv_freq, false),
        k: rope(&k, positions, shape.kv_heads, inv_freq, false),
        v,
    }
}

/// A row as signed bytes and their scale: the largest magnitude becomes 127.
pub fn to_bytes(row: &[f32]) -> (Vec<i8>, f32) {
    let top = row.iter().fold(0.0f32, |top, x| top.max(x.abs()));
    let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
    let bytes = row
        .iter()
        .map(|x| (x * inverse).round_ties_even() as i8)
        .collect();
    (bytes, top / 127.0)
}

/// The values that bytes and their scale stand for.
pub fn from_bytes(bytes: &[i8], scale: f32) -> Vec<f32> {
    bytes.iter().map(|&byte| f32::from(byte) * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_shifted_and_turned() {
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
        };
        let quarter = std::f64::consts::FRAC_PI_2;
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let bias = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -1.0];
        let rows = qkv_rows(shape, &x, &bias, &[1], &[quarter]);
        for (actual, expected) in rows.q.iter().zip([-2.0, 1.0, -4.0, 3.0]) {
            assert!((actual - expected).abs() < 1e-12);
        }
        assert!((rows.k[0] + 6.0).abs() < 1e-12 && (rows.k[1] - 6.0).abs() < 1e-12);
        assert_eq!(rows.v, [7.0, 7.0]);
    }

    #[test]
    fn bytes_are_off_by_half_a_step_at_most() {
        let row: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let (bytes, scale) = to_bytes(&row);
        assert_eq!(bytes.iter().map(|b| b.unsigned_abs()).max(), Some(127));
        for (x, back) in row.iter().zip(from_bytes(&bytes, scale)) {
            assert!((x - back).abs() <= scale * 0.5001);
        }
        assert_eq!(to_bytes(&[0.0; 4]), (vec![0; 4], 0.0));
    }
}
