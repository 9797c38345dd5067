//! Twin of `influence`: what hiding single entries and whole windows of attention would cost, by definition.
//!
//! The loss is linear in the output o of a row (its gradient is `d_o`), and o is the mean of the values weighted
//! by A. Write `mean(K)` for the mean of `g = d_o v` over the keys K with softmax weights. Then
//!
//! - hiding key j from the visible keys V costs `mean(V without j) - mean(V with j)`, which is
//!   `A (D - g) / (1 - A)` for a visible j;
//! - keeping exactly the keys K costs `mean(K) - mean(V)`.

use moa_mask::{HeadMask, MaskGrid};

use crate::attention_prefill::{AttentionShape, dot};

/// Costs by KV head and span, and by entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Influence {
    /// Sum of magnitudes over hidden entries, `[kv_head, bin]`.
    pub per_entry: Vec<f64>,
    /// Sum over rows of the joint effect's magnitude, `[kv_head, bin]`.
    pub joint_abs: Vec<f64>,
    /// Sum over rows of the joint effect.
    pub joint_signed: Vec<f64>,
    /// Sum over rows of the joint effect's positive part.
    pub joint_positive: Vec<f64>,
    /// Sum over rows of the joint effect's square.
    pub joint_square: Vec<f64>,
    /// Effect of each entry, `[head, len, len]`; 0 for keys after the query.
    pub entries: Vec<f64>,
}

/// Influence under `masks`; bin s is the span `block * (s + 1)` of `grid`. Shapes as in `attention_backward`.
pub fn influence(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_o: &[f32],
    masks: &[HeadMask],
    grid: MaskGrid,
) -> Influence {
    let len = q.len() / (shape.heads * shape.head_dim);
    let bins = len.div_ceil(grid.block() as usize);
    let zeros = || vec![0.0; shape.kv_heads * bins];
    let mut result = Influence {
        per_entry: zeros(),
        joint_abs: zeros(),
        joint_signed: zeros(),
        joint_positive: zeros(),
        joint_square: zeros(),
        entries: vec![0.0; shape.heads * len * len],
    };
    for head in 0..shape.heads {
        let kv_head = head / shape.gqa_group();
        for t in 0..len {
            let at = shape.q_index(t, head);
            let mut scores = Vec::new();
            let mut g = Vec::new();
            for key in 0..=t {
                let row = shape.kv_index(key, kv_head);
                let score = dot(&q[at..][..shape.head_dim], &k[row..][..shape.head_dim]);
                scores.push(score * shape.softmax_scale());
                g.push(dot(
                    &d_o[at..][..shape.head_dim],
                    &v[row..][..shape.head_dim],
                ));
            }
            let visible: Vec<bool> = (0..=t)
                .map(|key| masks[kv_head].attends(t as u32, key as u32))
                .collect();
            let now = weighted_mean(&scores, &g, |key| visible[key]).mean;
            for key in 0..=t {
                let others = weighted_mean(&scores, &g, |other| visible[other] && other != key);
                let weight = (scores[key] - others.lse).exp();
                // Shares of j and of the others in V with j; where nothing else is left the entry counts 0.
                let (share, rest) = (weight / (1.0 + weight), 1.0 / (1.0 + weight));
                if rest >= 1e-12 {
                    result.entries[(head * len + t) * len + key] = share * (others.mean - g[key]);
                }
            }
            for bin in 0..bins {
                let span = grid.block() * (bin as u32 + 1);
                let window = HeadMask::from_span(span, grid.sink());
                let keeps = |key: usize| window.attends(t as u32, key as u32);
                let cost = weighted_mean(&scores, &g, keeps).mean - now;
                let to = kv_head * bins + bin;
                result.joint_signed[to] += cost;
                result.joint_abs[to] += cost.abs();
                result.joint_positive[to] += cost.max(0.0);
                result.joint_square[to] += cost * cost;
                for key in 0..=t {
                    if !keeps(key) {
                        result.per_entry[to] += result.entries[(head * len + t) * len + key].abs();
                    }
                }
            }
        }
    }
    result
}

impl Influence {
    /// Sums of magnitudes and of signed effects over blocks of `block` x `block` entries, `[head, side, side]`.
    pub fn blocks(&self, heads: usize, block: usize) -> (Vec<f64>, Vec<f64>) {
        let len = (self.entries.len() / heads).isqrt();
        let side = len.div_ceil(block);
        let mut abs = vec![0.0; heads * side * side];
        let mut signed = abs.clone();
        for head in 0..heads {
            for t in 0..len {
                for key in 0..len {
                    let entry = self.entries[(head * len + t) * len + key];
                    let cell = (head * side + t / block) * side + key / block;
                    abs[cell] += entry.abs();
                    signed[cell] += entry;
                }
            }
        }
        (abs, signed)
    }
}

struct WeightedMean {
    mean: f64,
    lse: f64,
}

/// Mean of `g` over the keys that `keeps`, with softmax weights. The largest kept score is subtracted first.
fn weighted_mean(scores: &[f64], g: &[f64], keeps: impl Fn(usize) -> bool) -> WeightedMean {
    let mut largest = f64::NEG_INFINITY;
    for key in 0..scores.len() {
        if keeps(key) {
            largest = largest.max(scores[key]);
        }
    }
    let (mut sum, mut dot) = (0.0, 0.0);
    for key in 0..scores.len() {
        if keeps(key) {
            let weight = (scores[key] - largest).exp();
            sum += weight;
            dot += weight * g[key];
        }
    }
    WeightedMean {
        mean: dot / sum,
        lse: largest + sum.ln(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention_prefill::attention_prefill;

    const SHAPE: AttentionShape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
    };
    const LEN: usize = 19;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 2.0).collect()
    }

    /// The loss that is linear in o, by query head.
    fn losses(inputs: &[Vec<f32>; 4], masks: &[HeadMask]) -> Vec<f64> {
        let o = attention_prefill(SHAPE, &inputs[0], &inputs[1], &inputs[2], masks, 0).o;
        let mut losses = vec![0.0; SHAPE.heads];
        for (index, (o, d_o)) in o.iter().zip(&inputs[3]).enumerate() {
            losses[index / SHAPE.head_dim % SHAPE.heads] += o * f64::from(*d_o);
        }
        losses
    }

    fn inputs() -> [Vec<f32>; 4] {
        [
            wave(LEN * 16, 0.9),
            wave(LEN * 8, 0.7),
            wave(LEN * 8, 0.3),
            wave(LEN * 16, 0.41),
        ]
    }

    #[test]
    fn joint_effects_are_differences_of_the_linear_loss() {
        let inputs = inputs();
        let grid = MaskGrid::new(4, 2).unwrap();
        let plan = [
            HeadMask { sink: 2, window: 5 },
            HeadMask { sink: 0, window: 3 },
        ];
        for at in [[HeadMask::DENSE; 2], plan] {
            let result = influence(
                SHAPE, &inputs[0], &inputs[1], &inputs[2], &inputs[3], &at, grid,
            );
            let now = losses(&inputs, &at);
            for bin in 0..10 {
                let window = HeadMask::from_span(2 * (bin as u32 + 1), 4);
                let then = losses(&inputs, &[window; 2]);
                for kv_head in 0..2 {
                    let heads = [2 * kv_head, 2 * kv_head + 1];
                    let expected: f64 = heads.iter().map(|&head| then[head] - now[head]).sum();
                    let got = result.joint_signed[kv_head * 10 + bin];
                    assert!((got - expected).abs() < 1e-9, "{got} {expected}");
                    let parts = result.joint_positive[kv_head * 10 + bin];
                    let sum = got + result.joint_abs[kv_head * 10 + bin];
                    assert!((2.0 * parts - sum).abs() < 1e-9);
                }
            }
            assert!(result.joint_signed.iter().any(|cost| cost.abs() > 0.1));
        }
    }

    #[test]
    fn per_entry_is_the_formula_at_the_dense_model() {
        let inputs = inputs();
        let grid = MaskGrid::new(0, 1).unwrap();
        let dense = [HeadMask::DENSE; 2];
        let result = influence(
            SHAPE, &inputs[0], &inputs[1], &inputs[2], &inputs[3], &dense, grid,
        );
        let (head, t) = (3, 11);
        let (q_row, d_o_row) = (
            &inputs[0][SHAPE.q_index(t, head)..][..4],
            &inputs[3][SHAPE.q_index(t, head)..][..4],
        );
        let rows: Vec<usize> = (0..=t).map(|key| SHAPE.kv_index(key, 1)).collect();
        let scores: Vec<f64> = rows
            .iter()
            .map(|&row| dot(q_row, &inputs[1][row..][..4]) / 2.0)
            .collect();
        let g: Vec<f64> = rows
            .iter()
            .map(|&row| dot(d_o_row, &inputs[2][row..][..4]))
            .collect();
        let (a, _) = crate::softmax::softmax(&scores);
        let d: f64 = a.iter().zip(&g).map(|(a, g)| a * g).sum();
        for key in 0..=t {
            let expected = a[key] * (d - g[key]) / (1.0 - a[key]);
            let got = result.entries[(head * LEN + t) * LEN + key];
            assert!((got - expected).abs() < 1e-9, "{got} {expected}");
        }
        assert!(
            result.entries[(head * LEN + t) * LEN + t + 1..][..LEN - t - 1]
                .iter()
                .all(|&e| e == 0.0)
        );
        assert_eq!(result.entries[0], 0.0, "a row of one key");
    }
}
