//! Twin of `attention_backward`: gradients of masked attention's inputs.

use moa_mask::HeadMask;

use crate::attention_prefill::{AttentionShape, dot};
use crate::softmax::softmax;

/// Gradients in the shapes of their inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionGradients {
    /// `[len, heads, head_dim]`.
    pub d_q: Vec<f64>,
    /// `[len, kv_heads, head_dim]`.
    pub d_k: Vec<f64>,
    /// `[len, kv_heads, head_dim]`.
    pub d_v: Vec<f64>,
}

/// Backward of `attention_prefill` with queries and keys at the same positions `0..`; `d_o` is the gradient of
/// its output. With g = dL/dA = d_o v and D = sum of A g, dL/dscore is `A (g - D)`.
pub fn attention_backward(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_o: &[f32],
    masks: &[HeadMask],
) -> AttentionGradients {
    let len = q.len() / (shape.heads * shape.head_dim);
    let mut d_q = vec![0.0; q.len()];
    let mut d_k = vec![0.0; k.len()];
    let mut d_v = vec![0.0; v.len()];
    for t in 0..len {
        for head in 0..shape.heads {
            let kv_head = head / shape.gqa_group();
            let keys: Vec<usize> = (0..=t)
                .filter(|&key| masks[kv_head].attends(t as u32, key as u32))
                .collect();
            let row = shape.q_index(t, head);
            let (q_row, d_o_row) = (&q[row..][..shape.head_dim], &d_o[row..][..shape.head_dim]);
            let mut scores = Vec::new();
            let mut g = Vec::new();
            for &key in &keys {
                let at = shape.kv_index(key, kv_head);
                scores.push(dot(q_row, &k[at..][..shape.head_dim]) * shape.softmax_scale());
                g.push(dot(d_o_row, &v[at..][..shape.head_dim]));
            }
            let (a, _) = softmax(&scores);
            let d: f64 = a.iter().zip(&g).map(|(a, g)| a * g).sum();
            for (index, &key) in keys.iter().enumerate() {
                let at = shape.kv_index(key, kv_head);
                let d_score = a[index] * (g[index] - d) * shape.softmax_scale();
                for channel in 0..shape.head_dim {
                    d_q[row + channel] += d_score * f64::from(k[at + channel]);
                    d_k[at + channel] += d_score * f64::from(q[row + channel]);
                    d_v[at + channel] += a[index] * f64::from(d_o[row + channel]);
                }
            }
        }
    }
    AttentionGradients { d_q, d_k, d_v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention_prefill::attention_prefill;

    #[test]
    fn gradients_are_slopes() {
        let shape = AttentionShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
        };
        let masks = [HeadMask { sink: 1, window: 3 }, HeadMask::DENSE];
        let wave = |n: usize, step: f32| -> Vec<f32> {
            (0..n).map(|i| (i as f32 * step).sin() * 2.0).collect()
        };
        let len = 7;
        let inputs = [wave(len * 16, 0.9), wave(len * 8, 0.7), wave(len * 8, 0.3)];
        let d_o = wave(len * 16, 0.41);
        let loss = |x: &[Vec<f32>; 3]| -> f64 {
            let o = attention_prefill(shape, &x[0], &x[1], &x[2], &masks, 0).o;
            o.iter().zip(&d_o).map(|(o, d)| o * f64::from(*d)).sum()
        };
        let gradients = attention_backward(shape, &inputs[0], &inputs[1], &inputs[2], &d_o, &masks);
        let step = 1.0f32 / 4096.0;
        for (which, gradient) in [&gradients.d_q, &gradients.d_k, &gradients.d_v]
            .iter()
            .enumerate()
        {
            assert!(gradient.iter().any(|d| d.abs() > 0.1));
            for i in 0..gradient.len() {
                let at = |sign: f32| {
                    let mut x = inputs.clone();
                    x[which][i] += sign * step;
                    (loss(&x), f64::from(x[which][i]))
                };
                let ((above, high), (below, low)) = (at(1.0), at(-1.0));
                let slope = (above - below) / (high - low);
                assert!(
                    (slope - gradient[i]).abs() < 1e-5,
                    "{which} {i}: {slope} {}",
                    gradient[i]
                );
            }
        }
    }
}
