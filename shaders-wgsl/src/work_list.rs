//! The static work list of decode attention: which workgroup reads which part of which head's keys.
//!
//! It follows from the spans alone, so dispatch shapes never change; a head of a short span has few entries, and
//! every entry has the same number of keys to read at most.

use moa_mask::abi::{HeadSpan, SpanPart};

use crate::HeadShape;

/// An entry for each workgroup, and how many partial results they leave.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkList {
    /// The entries: the first parts of all KV heads, then their second ones, and so on. Those that read the same keys
    /// are neighbors, so that the second one finds them in a cache; and while few keys are in the cache those that have
    /// any are the first ones, which go to different cores. Behind them nothing, up to [`Self::MOST_ITEMS`]: kernels bind
    /// so many.
    pub items: Vec<SpanPart>,
    /// Entries that are some.
    pub count: u32,
    /// Partial results.
    pub partials: u32,
}

impl WorkList {
    /// Entries at most: enough for every core to have several, and few enough that what each of them begins and ends with,
    /// and the joining of their results, is little beside the keys. Four for each of the 132 cores of an H100 or H200, which
    /// hold no more of them at once: some more would take a whole turn for themselves.
    pub const MOST_ITEMS: u32 = 528;

    /// The list of a layer in a context.
    pub fn new(layer: &[HeadSpan], context: u32, shape: HeadShape) -> Self {
        let all: u32 = layer.iter().map(|span| rounds(span, context, shape)).sum();
        // Every head may have one part that is not full.
        let partial = shape.kv_heads * shape.items_per_part();
        let most = (all * shape.items_per_part()).div_ceil(Self::MOST_ITEMS + 1 - partial);
        Self::of_rounds(layer, context, shape, most)
    }

    /// The list with so many rounds to a part: the same for every head, so that all entries take equally long. There must
    /// not be more than [`Self::MOST_ITEMS`].
    pub fn of_rounds(layer: &[HeadSpan], context: u32, shape: HeadShape, most: u32) -> Self {
        let group = shape.gqa_group();
        let parts_of = |span| rounds(span, context, shape).div_ceil(most.max(1)).max(1);
        let mut items = vec![SpanPart::default(); Self::MOST_ITEMS as usize];
        let mut free = items.iter_mut();
        let mut count = 0;
        let mut partials = 0;
        for part in 0.. {
            let before = count;
            // The first parts of all heads come first.
            let mut first_row = group * (shape.kv_heads - 1);
            for (kv_head, span) in (0..shape.kv_heads).zip(layer) {
                let parts = parts_of(span);
                if part < parts {
                    for (item, entry) in (0..shape.items_per_part()).zip(&mut free) {
                        *entry = SpanPart {
                            sink: span.sink,
                            window: span.window,
                            ring: span.ring,
                            slot_offset: span.slot_offset,
                            first_head: kv_head * group + item * shape.heads_per_item(),
                            part,
                            parts,
                            first_row,
                        };
                        count += 1;
                    }
                    partials += group;
                }
                first_row += (parts - 1) * group;
            }
            if count == before {
                break;
            }
        }
        Self {
            items,
            count,
            partials,
        }
    }
}

/// Rounds that a head's keys fill at most.
fn rounds(span: &HeadSpan, context: u32, shape: HeadShape) -> u32 {
    let keys = span.sink.saturating_add(span.window).min(context);
    keys.div_ceil(shape.decode_round())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(sink: u32, window: u32) -> HeadSpan {
        HeadSpan {
            sink,
            window,
            ring: 0,
            slot_offset: 0,
        }
    }

    #[test]
    fn every_part_of_every_head_has_one_entry_and_one_place() {
        let shape = HeadShape {
            heads: 14,
            kv_heads: 2,
            head_dim: 128,
        };
        let layer = [span(64, 36), span(0, u32::MAX)];
        let list = WorkList::new(&layer, 1000, shape);
        assert_eq!(shape.heads_per_item(), 4, "a group of 7 in 4 and 3");
        assert_eq!(shape.decode_round(), 32, "8 lanes, four keys of each");
        let parts = [4, 32];
        assert_eq!(
            list.count,
            2 * 4 + 2 * 32,
            "ceil(100 / 32), and ceil(1000 / 32)"
        );
        let mut seen = vec![false; list.partials as usize];
        for item in &list.items[..list.count as usize] {
            let kv_head = item.first_head / 7;
            assert_eq!(item.window, layer[kv_head as usize].window);
            assert_eq!(item.parts, parts[kv_head as usize]);
            let heads = item.first_head..(item.first_head + 4).min(7 * (kv_head + 1));
            for head in heads {
                let row = if item.part == 0 {
                    head
                } else {
                    item.first_row + 7 * item.part + head % 7
                };
                let twice = std::mem::replace(&mut seen[row as usize], true);
                assert!(!twice, "one writer");
            }
        }
        assert!(seen.iter().all(|seen| *seen), "no place is nobody's");
        // The first entry of a KV head is where `merge_lse` looks for it.
        for kv_head in 0..2 {
            let item = list.items[(kv_head * shape.items_per_part()) as usize];
            assert_eq!((item.part, item.first_head), (0, 7 * kv_head));
        }
    }

    #[test]
    fn long_spans_have_longer_parts_and_not_more_of_them() {
        let shape = HeadShape {
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
        };
        let round = shape.decode_round();
        assert_eq!(round, 64);
        for (short, long) in [(1, 64), (300, 5000), (4096, 131_072), (131_072, 131_072)] {
            let layer = [short, long].map(|window| span(0, window));
            let list = WorkList::new(&layer, 131_072, shape);
            assert!(list.count <= WorkList::MOST_ITEMS);
            let keys = [0, 4].map(|first_head| {
                let item = list.items.iter().find(|item| item.first_head == first_head);
                let item = item.unwrap();
                item.window.div_ceil(item.parts).div_ceil(round)
            });
            assert!(keys[0] <= keys[1], "{short}, {long}: {keys:?}");
            assert!(keys[1] > 1 || long < 131_072, "{short}, {long}: {keys:?}");
        }
    }
}
