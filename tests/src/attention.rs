//! Inputs of the attention kernels for a case: queries, keys and values, and the rings as they lie in memory.

use half::f16;
use moa_mask::abi::HeadSpan;
use moa_mask::{RingLayout, SLACK, memory};
use moa_reference::attention_prefill::AttentionShape;
use moa_reference::qkv_rows::{from_bytes, to_bytes};
use moa_shaders::HeadShape;

use crate::cases::AttentionCase;
use crate::random::Random;

/// What an attention kernel gets, keys and values at their positions and rounded to f16.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// `[len, heads, head_dim]`, rotated already.
    pub q: Vec<f32>,
    /// `[start + len, kv_heads, head_dim]`.
    pub k: Vec<f32>,
    /// The same for V.
    pub v: Vec<f32>,
}

impl AttentionCase {
    /// The shape for kernels.
    pub fn head_shape(&self) -> HeadShape {
        HeadShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// The shape for twins.
    pub fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            head_dim: self.head_dim as usize,
        }
    }

    /// Seeded inputs; queries are scaled so that the largest visible score is [`AttentionCase::largest_score`].
    pub fn inputs(&self, seed: u64) -> Inputs {
        let mut random = Random::new(seed);
        let shape = self.shape();
        let kv = (self.start + self.len) as usize * shape.kv_heads * shape.head_dim;
        let rounded = |values: Vec<f32>| {
            values
                .into_iter()
                .map(|v| f16::from_f32(v).to_f32())
                .collect()
        };
        let mut inputs = Inputs {
            q: random.spiked(self.len as usize * shape.heads * shape.head_dim, 1.0),
            k: rounded(random.spiked(kv, 1.0)),
            v: rounded(random.spiked(kv, 1.0)),
        };
        let mut largest = 0.0f32;
        for t in 0..self.len as usize {
            for head in 0..shape.heads {
                let kv_head = head / shape.gqa_group();
                for key in 0..(self.start + self.len) as usize {
                    let q = &inputs.q[shape.q_index(t, head)..][..shape.head_dim];
                    let k = &inputs.k[shape.kv_index(key, kv_head)..][..shape.head_dim];
                    let score: f32 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    largest = largest.max(score.abs());
                }
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "a scale of inputs")]
        let scale = self.largest_score / (largest * shape.softmax_scale() as f32);
        inputs.q.iter_mut().for_each(|q| *q *= scale);
        inputs
    }

    /// Each KV head's slots.
    pub fn layouts(&self) -> Vec<RingLayout> {
        self.masks
            .iter()
            .map(|&mask| RingLayout::new(mask, self.context, SLACK))
            .collect()
    }

    /// What kernels are told of each KV head.
    pub fn spans(&self) -> Vec<HeadSpan> {
        let (offsets, _) = memory::slot_offsets(&self.masks, self.context, SLACK);
        let layouts = self.layouts();
        (self.masks.iter().zip(&layouts).zip(offsets))
            .map(|((mask, layout), slot_offset)| HeadSpan {
                sink: layout.sink,
                window: mask.window,
                ring: layout.ring,
                slot_offset,
            })
            .collect()
    }

    /// The layer's rings after `written` tokens, as words of two f16: `rows` (`k` or `v`) where some query of the
    /// case sees the key that a slot holds, `forbidden` in every other word.
    pub fn ring(&self, rows: &[f32], written: u32, forbidden: u32) -> Vec<u32> {
        let shape = self.shape();
        let (offsets, slots) = memory::slot_offsets(&self.masks, self.context, SLACK);
        let mut words = vec![forbidden; slots as usize * shape.head_dim / 2];
        for (kv_head, (&mask, layout)) in self.masks.iter().zip(self.layouts()).enumerate() {
            for slot in 0..layout.slots() {
                let visible = |position: &u32| {
                    (self.start..self.start + self.len).any(|q_pos| mask.attends(q_pos, *position))
                };
                if let Some(position) = layout.position(slot, written).filter(visible) {
                    let row = &rows[shape.kv_index(position as usize, kv_head)..][..shape.head_dim];
                    let at = (offsets[kv_head] + slot) as usize * shape.head_dim / 2;
                    words[at..at + shape.head_dim / 2].copy_from_slice(&packed(row));
                }
            }
        }
        words
    }

    /// The same rings with rows kept as bytes: a scale and `head_dim` bytes each.
    pub fn ring_of_bytes(&self, rows: &[f32], written: u32, forbidden: u32) -> Vec<u32> {
        let width = self.head_dim as usize;
        let row_words = 1 + width / 4;
        // Where the f16 ring has rows of its own, so has this one.
        let marks = self.ring(&vec![0.0; rows.len()], written, 1);
        let (offsets, slots) = memory::slot_offsets(&self.masks, self.context, SLACK);
        let mut words = vec![forbidden; slots as usize * row_words];
        for (kv_head, layout) in self.layouts().into_iter().enumerate() {
            for slot in 0..layout.slots() {
                let row = (offsets[kv_head] + slot) as usize;
                let position = layout.position(slot, written);
                let Some(position) = position.filter(|_| marks[row * width / 2] == 0) else {
                    continue;
                };
                let from = self.shape().kv_index(position as usize, kv_head);
                let (bytes, scale) = to_bytes(&rows[from..from + width]);
                words[row * row_words] = scale.to_bits();
                for (word, four) in words[row * row_words + 1..].iter_mut().zip(bytes.chunks(4)) {
                    let four = [four[0], four[1], four[2], four[3]];
                    *word = u32::from_le_bytes(four.map(i8::cast_unsigned));
                }
            }
        }
        words
    }

    /// What the rows of positions below `end` are after they were kept as bytes.
    pub fn through_bytes(&self, rows: &[f32], end: u32) -> Vec<f32> {
        let mut rows = rows.to_vec();
        let kept = self.shape().kv_index(end as usize, 0);
        for row in rows[..kept].chunks_mut(self.head_dim as usize) {
            let (bytes, scale) = to_bytes(row);
            row.copy_from_slice(&from_bytes(&bytes, scale));
        }
        rows
    }

    /// The chunk's own rows, `[token][kv_head]`, as words of two f16.
    pub fn chunk(&self, rows: &[f32]) -> Vec<u32> {
        let first = self.shape().kv_index(self.start as usize, 0);
        packed(&rows[first..])
    }
}

/// Values as words of two f16, the first one low.
pub fn packed(values: &[f32]) -> Vec<u32> {
    let bits = |value: f32| u32::from(f16::from_f32(value).to_bits());
    values
        .chunks_exact(2)
        .map(|pair| bits(pair[0]) | bits(pair[1]) << 16)
        .collect()
}

/// Words of two f16 as values.
pub fn unpacked(words: &[u32]) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
    let halves = |word: &u32| [*word as u16, (*word >> 16) as u16];
    words
        .iter()
        .flat_map(halves)
        .map(|bits| f16::from_bits(bits).to_f32())
        .collect()
}
