//! The predicate, and the masks of a whole model.

use crate::{HeadRule, MaskError, MaskGrid, Result};

/// What one KV head sees: `sink` first keys and the `window` most recent ones, the current key counted.
///
/// (FlashAttention's `window_size_left` does not count the current key; ours does.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadMask {
    /// First keys that are always visible, in tokens.
    pub sink: u32,
    /// Most recent visible keys in tokens, the current one counted; at least 1.
    pub window: u32,
}

impl HeadMask {
    /// A mask that hides nothing.
    pub const DENSE: Self = Self {
        sink: 0,
        window: u32::MAX,
    };

    /// The mask of a span that includes the sink.
    pub const fn from_span(span: u32, sink: u32) -> Self {
        let window = span.saturating_sub(sink);
        Self {
            sink,
            window: if window == 0 { 1 } else { window },
        }
    }

    /// Keys that a query sees at most: sink and window.
    pub const fn span(self) -> u32 {
        self.sink.saturating_add(self.window)
    }

    /// Whether the query at absolute position `q_pos` sees the key at `k_pos`.
    pub const fn attends(self, q_pos: u32, k_pos: u32) -> bool {
        k_pos <= q_pos && (k_pos < self.sink || q_pos - k_pos < self.window)
    }

    /// How many keys the query at `q_pos` sees.
    pub const fn visible(self, q_pos: u32) -> u32 {
        let causal = q_pos.saturating_add(1);
        let span = self.span();
        if causal < span { causal } else { span }
    }

    /// First position of the window of the query at `q_pos`, never below the sink.
    pub const fn window_start(self, q_pos: u32) -> u32 {
        let start = q_pos.saturating_add(1).saturating_sub(self.window);
        if start > self.sink { start } else { self.sink }
    }
}

/// The mask of every KV head of a model at one declared context length: `[layer][kv_head]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelMasks {
    layers: usize,
    kv_heads: usize,
    heads: Vec<HeadMask>,
}

impl ModelMasks {
    /// Every head of every layer sees everything.
    pub fn dense(layers: usize, kv_heads: usize) -> Self {
        Self {
            layers,
            kv_heads,
            heads: vec![HeadMask::DENSE; layers * kv_heads],
        }
    }

    /// The masks of `rules[layer][kv_head]` at `context` tokens. Every layer must have as many heads as the first.
    pub fn from_rules(rules: &[Vec<HeadRule>], context: u32, grid: MaskGrid) -> Result<Self> {
        let kv_heads = rules.first().map_or(0, Vec::len);
        let mut heads = Vec::with_capacity(rules.len() * kv_heads);
        for (layer, row) in rules.iter().enumerate() {
            if row.len() != kv_heads {
                return Err(MaskError::ShapeMismatch {
                    what: format!("kv heads in layer {layer}"),
                    got: row.len(),
                    expected: kv_heads,
                });
            }
            for rule in row {
                rule.check(grid)?;
                heads.push(rule.mask(context, grid));
            }
        }
        Ok(Self {
            layers: rules.len(),
            kv_heads,
            heads,
        })
    }

    /// The same mask on every head.
    pub fn uniform(layers: usize, kv_heads: usize, mask: HeadMask) -> Self {
        Self {
            layers,
            kv_heads,
            heads: vec![mask; layers * kv_heads],
        }
    }

    /// Refuses masks that were made for another model.
    pub fn check_shape(&self, layers: usize, kv_heads: usize) -> Result<()> {
        if self.layers != layers {
            return Err(MaskError::ShapeMismatch {
                what: "layers".into(),
                got: self.layers,
                expected: layers,
            });
        }
        if self.kv_heads != kv_heads {
            return Err(MaskError::ShapeMismatch {
                what: "kv heads".into(),
                got: self.kv_heads,
                expected: kv_heads,
            });
        }
        Ok(())
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Number of KV heads in each layer.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// The masks of one layer's KV heads.
    pub fn layer(&self, layer: usize) -> &[HeadMask] {
        &self.heads[layer * self.kv_heads..][..self.kv_heads]
    }

    /// All masks, layer by layer.
    pub fn iter(&self) -> impl Iterator<Item = HeadMask> + '_ {
        self.heads.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_key_is_always_visible() {
        for sink in 0..4 {
            for window in 1..5 {
                let mask = HeadMask { sink, window };
                for q_pos in 0..20 {
                    assert!(mask.attends(q_pos, q_pos));
                    assert!(!mask.attends(q_pos, q_pos + 1));
                    let visible = (0..=q_pos)
                        .filter(|&k_pos| mask.attends(q_pos, k_pos))
                        .count();
                    assert_eq!(visible, mask.visible(q_pos) as usize);
                }
            }
        }
        assert!(HeadMask::DENSE.attends(u32::MAX - 1, 0));
    }

    #[test]
    fn below_its_span_a_head_sees_everything() {
        let grid = MaskGrid::new(8, 4).unwrap();
        let rule = HeadRule::Elastic {
            alpha: 0.0,
            beta: 0.5,
        };
        let mask = rule.mask(64, grid);
        for q_pos in 0..rule.span(64, grid) {
            for k_pos in 0..=q_pos {
                assert!(mask.attends(q_pos, k_pos));
            }
        }
        assert!(!mask.attends(32, 8));
    }

    #[test]
    fn shapes_are_checked() {
        let grid = MaskGrid::default();
        let ragged = vec![vec![HeadRule::DENSE; 2], vec![HeadRule::DENSE]];
        assert!(ModelMasks::from_rules(&ragged, 100, grid).is_err());
        let masks = ModelMasks::from_rules(&ragged[..1], 100, grid).unwrap();
        assert!(masks.check_shape(1, 2).is_ok());
        assert!(masks.check_shape(2, 2).is_err());
        assert!(masks.check_shape(1, 3).is_err());
    }
}
