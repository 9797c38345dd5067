//! Twin of `attention_prefill`: masked grouped-query attention of a run of queries over linear keys.
//!
//! Keys sit at their own positions; rings are the business of `attention_decode` and of tests that lay a ring
//! out themselves. Forbidden keys are not read, so NaN in them is harmless here as it must be in kernels.

use moa_mask::HeadMask;

use crate::softmax::softmax;

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// KV heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Query heads that share a KV head.
    pub fn gqa_group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// `1 / sqrt(head_dim)`.
    pub fn softmax_scale(self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Index of a query's first channel in `[positions, heads, head_dim]`.
    pub fn q_index(self, t: usize, head: usize) -> usize {
        (t * self.heads + head) * self.head_dim
    }

    /// Index of a key's first channel in `[positions, kv_heads, head_dim]`.
    pub fn kv_index(self, t: usize, kv_head: usize) -> usize {
        (t * self.kv_heads + kv_head) * self.head_dim
    }
}

/// What attention gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Attended {
    /// `[q_len, heads, head_dim]`.
    pub o: Vec<f64>,
    /// Log-sum-exp of the scaled visible scores, `[q_len, heads]`.
    pub lse: Vec<f64>,
}

/// Queries at positions `q_start..` (`q` is `[q_len, heads, head_dim]`) over keys at positions `0..`
/// (`k`, `v` are `[kv_len, kv_heads, head_dim]`), `masks` one for each KV head. RoPE has been applied.
pub fn attention_prefill(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    masks: &[HeadMask],
    q_start: u32,
) -> Attended {
    let kv_len = k.len() / (shape.kv_heads * shape.head_dim);
    let q_len = q.len() / (shape.heads * shape.head_dim);
    let mut o = vec![0.0; q.len()];
    let mut lse = vec![0.0; q_len * shape.heads];
    for t in 0..q_len {
        let q_pos = q_start + t as u32;
        for head in 0..shape.heads {
            let kv_head = head / shape.gqa_group();
            let keys: Vec<usize> = (0..kv_len)
                .filter(|&key| masks[kv_head].attends(q_pos, key as u32))
                .collect();
            let q_row = &q[shape.q_index(t, head)..][..shape.head_dim];
            let scores: Vec<f64> = keys
                .iter()
                .map(|&key| {
                    let k_row = &k[shape.kv_index(key, kv_head)..][..shape.head_dim];
                    dot(q_row, k_row) * shape.softmax_scale()
                })
                .collect();
            let (p, row_lse) = softmax(&scores);
            lse[t * shape.heads + head] = row_lse;
            for (&key, p) in keys.iter().zip(p) {
                for channel in 0..shape.head_dim {
                    o[shape.q_index(t, head) + channel] +=
                        p * f64::from(v[shape.kv_index(key, kv_head) + channel]);
                }
            }
        }
    }
    Attended { o, lse }
}

/// Inner product in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sum = 0.0;
    for (a, b) in a.iter().zip(b) {
        sum += f64::from(*a) * f64::from(*b);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
    };

    #[test]
    fn equal_scores_give_the_mean_of_the_visible_values() {
        let q = vec![0.0; 3 * 8];
        let k = vec![1.0; 3 * 4];
        let v: Vec<f32> = (0..3 * 4).map(|i| i as f32).collect();
        let dense = attention_prefill(SHAPE, &q, &k, &v, &[HeadMask::DENSE], 0);
        assert_eq!(&dense.o[2 * 8..2 * 8 + 4], &[4.0, 5.0, 6.0, 7.0]);
        assert!((dense.lse[2 * 2] - 3.0f64.ln()).abs() < 1e-15);
        let mask = HeadMask { sink: 1, window: 1 };
        let masked = attention_prefill(SHAPE, &q, &k, &v, &[mask], 0);
        assert_eq!(
            &masked.o[2 * 8 + 4..],
            &[4.0, 5.0, 6.0, 7.0],
            "keys 0 and 2"
        );
        assert_eq!(&masked.o[8..12], &[2.0, 3.0, 4.0, 5.0], "keys 0 and 1");
    }

    #[test]
    fn forbidden_keys_are_not_read() {
        let q: Vec<f32> = (0..8).map(|i| (i as f32).cos()).collect();
        let mut k: Vec<f32> = (0..24).map(|i| (i as f32).sin()).collect();
        let mut v = k.clone();
        let mask = HeadMask { sink: 1, window: 2 };
        let clean = attention_prefill(SHAPE, &q, &k, &v, &[mask], 4);
        for key in [1, 2, 5] {
            k[key * 4..][..4].fill(f32::NAN);
            v[key * 4..][..4].fill(f32::NAN);
        }
        assert_eq!(attention_prefill(SHAPE, &q, &k, &v, &[mask], 4), clean);
        k[3 * 4] = f32::NAN;
        let dirty = attention_prefill(SHAPE, &q, &k, &v, &[mask], 4);
        assert!(dirty.o.iter().any(|value| value.is_nan()), "key 3 is read");
    }
}
