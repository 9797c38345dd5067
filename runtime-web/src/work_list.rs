//! The static work list of decode attention: which workgroup reads which part of which head's keys.
//!
//! It follows from the spans alone, so dispatch shapes never change; a head of a short span has few entries, and
//! every entry has the same number of keys to read at most.

use moa_mask::HeadMask;
use moa_mask::abi::{DecodeItem, HeadParts};
use moa_shaders::HeadShape;

/// Entries of a layer that are aimed at: enough for every core to have several, and few enough that what each of them
/// begins and ends with, and the joining of their results, is little beside the keys.
const ENTRIES: u32 = 512;

/// Entries for workgroups, and for each query head where its partial results lie.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WorkList {
    pub(crate) items: Vec<DecodeItem>,
    pub(crate) heads: Vec<HeadParts>,
    heads_per_item: u32,
}

impl WorkList {
    pub(crate) fn new(layer: &[HeadMask], context: u32, shape: HeadShape) -> Self {
        let served = shape.heads_per_item();
        let sharing = shape.items_per_part();
        let rounds = |mask: &HeadMask| mask.span().min(context).div_ceil(shape.decode_round());
        let all: u32 = layer.iter().map(rounds).sum::<u32>() * sharing;
        // The same for every head, so that all entries take equally long.
        let rounds_per_part = all.div_ceil(ENTRIES).max(1);
        let mut items = Vec::new();
        let mut heads = Vec::new();
        let mut partial = 0;
        for (kv_head, mask) in (0..shape.kv_heads).zip(layer) {
            let parts = rounds(mask).div_ceil(rounds_per_part).max(1);
            let first_head = kv_head * shape.gqa_group();
            // Those that read the same keys are neighbors: the second one finds them in a cache.
            for part in 0..parts {
                items.extend((0..sharing).map(|item| DecodeItem {
                    kv_head,
                    first_head: first_head + item * served,
                    part,
                    parts,
                }));
            }
            heads.extend((0..shape.gqa_group()).map(|head| HeadParts {
                first: partial + head,
                stride: sharing * served,
                parts,
                reserved: 0,
            }));
            partial += parts * sharing * served;
        }
        Self {
            items,
            heads,
            heads_per_item: served,
        }
    }

    /// Partial results of the whole list.
    pub(crate) fn partials(&self) -> u64 {
        self.items.len() as u64 * u64::from(self.heads_per_item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_every_head_has_one_entry() {
        let shape = HeadShape {
            heads: 14,
            kv_heads: 2,
            head_dim: 128,
        };
        let layer = [HeadMask::from_span(100, 64), HeadMask::DENSE];
        let list = WorkList::new(&layer, 1000, shape);
        assert_eq!(shape.heads_per_item(), 4, "a group of 7 in 4 and 3");
        assert_eq!(shape.decode_round(), 32, "8 lanes, four keys of each");
        assert_eq!(
            list.items.len(),
            2 * 4 + 2 * 32,
            "ceil(100 / 32), and ceil(1000 / 32)"
        );
        assert_eq!(list.heads.len(), 14);
        let mut seen = vec![false; usize::try_from(list.partials()).unwrap()];
        for (head, parts) in list.heads.iter().enumerate() {
            for part in 0..parts.parts {
                let partial = parts.first + part * parts.stride;
                let item = list.items[(partial / 4) as usize];
                assert_eq!((item.part, item.parts), (part, parts.parts));
                assert_eq!(item.first_head + partial % 4, u32::try_from(head).unwrap());
                assert_eq!(item.kv_head, u32::try_from(head).unwrap() / 7);
                assert!(
                    !std::mem::replace(&mut seen[partial as usize], true),
                    "one writer"
                );
            }
        }
        // Rows past a group's last head are nobody's.
        let unseen = seen.iter().filter(|seen| !**seen).count();
        assert_eq!(unseen, list.items.len() / 2);
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
            let layer = [short, long].map(|window| HeadMask { sink: 0, window });
            let list = WorkList::new(&layer, 131_072, shape);
            assert!(list.items.len() <= ENTRIES as usize + layer.len());
            let keys = layer.map(|mask| {
                let items = list
                    .items
                    .iter()
                    .find(|item| mask == layer[item.kv_head as usize]);
                mask.visible(131_071)
                    .div_ceil(items.unwrap().parts)
                    .div_ceil(round)
            });
            assert!(keys[0] <= keys[1], "{short}, {long}: {keys:?}");
            assert!(keys[1] > 1 || long < 131_072, "{short}, {long}: {keys:?}");
        }
    }
}
