//! Twin of `attention_decode`: one query over each KV head's sink slots and ring.
//!
//! It asks the ring which position every slot holds and the mask whether that position is visible; a kernel
//! does the same with loop bounds. Slots that hold nothing visible are not read.

use moa_mask::{HeadMask, RingLayout};

use crate::attention_prefill::{Attended, AttentionShape, dot};
use crate::softmax::softmax;

/// A KV head's slots in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeHead {
    /// What the head sees.
    pub mask: HeadMask,
    /// Its sink slots and its ring.
    pub layout: RingLayout,
    /// Its first slot in the layer's buffers.
    pub slot_offset: usize,
}

/// The query at `q_pos` (`q` is `[heads, head_dim]`) over the slots `[slot, head_dim]` of `k` and `v`,
/// into which `len` tokens have been written, the query's own among them (`q_pos < len`).
pub fn attention_decode(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    kv_heads: &[DecodeHead],
    q_pos: u32,
    len: u32,
) -> Attended {
    let mut o = vec![0.0; shape.heads * shape.head_dim];
    let mut lse = vec![0.0; shape.heads];
    for head in 0..shape.heads {
        let kv = kv_heads[head / shape.gqa_group()];
        let rows: Vec<usize> = (0..kv.layout.slots())
            .filter(|&slot| {
                kv.layout
                    .position(slot, len)
                    .is_some_and(|k_pos| kv.mask.attends(q_pos, k_pos))
            })
            .map(|slot| (kv.slot_offset + slot as usize) * shape.head_dim)
            .collect();
        let q_row = &q[head * shape.head_dim..][..shape.head_dim];
        let scores: Vec<f64> = rows
            .iter()
            .map(|&row| dot(q_row, &k[row..][..shape.head_dim]) * shape.softmax_scale())
            .collect();
        let (p, row_lse) = softmax(&scores);
        lse[head] = row_lse;
        for (&row, p) in rows.iter().zip(p) {
            for channel in 0..shape.head_dim {
                o[head * shape.head_dim + channel] += p * f64::from(v[row + channel]);
            }
        }
    }
    Attended { o, lse }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention_prefill::attention_prefill;

    #[test]
    fn a_wrapped_ring_gives_what_linear_keys_give() {
        let shape = AttentionShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
        };
        let wave =
            |n: usize, step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
        let (context, len) = (40u32, 29u32);
        let masks = [
            HeadMask { sink: 2, window: 5 },
            HeadMask {
                sink: 2,
                window: 60,
            },
        ];
        let (q, k, v) = (wave(16, 0.9), wave(29 * 8, 0.31), wave(29 * 8, 0.17));
        let mut slots = 0;
        let heads: Vec<DecodeHead> = masks
            .iter()
            .map(|&mask| {
                let layout = RingLayout::new(mask, context, 3);
                let slot_offset = slots as usize;
                slots += layout.slots();
                DecodeHead {
                    mask,
                    layout,
                    slot_offset,
                }
            })
            .collect();
        let mut ring_k = vec![f32::NAN; slots as usize * 4];
        let mut ring_v = ring_k.clone();
        for t in 0..len {
            for (kv_head, head) in heads.iter().enumerate() {
                let slot = (head.slot_offset + head.layout.slot(t) as usize) * 4;
                let from = shape.kv_index(t as usize, kv_head);
                ring_k[slot..slot + 4].copy_from_slice(&k[from..from + 4]);
                ring_v[slot..slot + 4].copy_from_slice(&v[from..from + 4]);
            }
        }
        let linear = attention_prefill(shape, &q, &k, &v, &masks, len - 1);
        let ring = attention_decode(shape, &q, &ring_k, &ring_v, &heads, len - 1, len);
        for (a, b) in linear.o.iter().zip(&ring.o) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
        for (a, b) in linear.lse.iter().zip(&ring.lse) {
            assert!((a - b).abs() < 1e-12);
        }
    }
}
