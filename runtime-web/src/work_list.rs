//! The static work list of decode attention: which workgroup reads which part of which head's keys.
//!
//! It follows from the spans alone, so dispatch shapes never change; a head of a short span has few entries, and
//! every entry has the same number of keys to read at most.

use moa_mask::HeadMask;
use moa_mask::abi::{DECODE_KEYS, DecodeItem, HeadParts};
use moa_shaders::HeadShape;

/// Keys of a part at most. Short spans are cut finer, so that there are workgroups enough for every core, and each is
/// soon done; long ones have enough of them, and joining many parts costs too.
const fn keys_per_part(span: u32) -> u32 {
    if span <= 8192 {
        DECODE_KEYS / 2
    } else {
        DECODE_KEYS
    }
}

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
        let mut items = Vec::new();
        let mut heads = Vec::new();
        let mut partial = 0;
        for (kv_head, mask) in (0..shape.kv_heads).zip(layer) {
            let span = mask.span().min(context);
            let parts = span.div_ceil(keys_per_part(span)).max(1);
            for first in (0..shape.gqa_group()).step_by(served as usize) {
                let first_head = kv_head * shape.gqa_group() + first;
                items.extend((0..parts).map(|part| DecodeItem {
                    kv_head,
                    first_head,
                    part,
                    parts,
                }));
                heads.extend((0..served).map(|head| HeadParts {
                    first: partial + head,
                    stride: served,
                    parts,
                    reserved: 0,
                }));
                partial += parts * served;
            }
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
            heads: 24,
            kv_heads: 2,
            head_dim: 128,
        };
        let layer = [HeadMask::from_span(100, 64), HeadMask::DENSE];
        let list = WorkList::new(&layer, 1000, shape);
        assert_eq!(shape.heads_per_item(), 6, "half a group of 12");
        assert_eq!(
            list.items.len(),
            2 * 2 + 2 * 16,
            "ceil(100 / 64), and ceil(1000 / 64)"
        );
        assert_eq!(list.heads.len(), 24);
        let mut seen = vec![false; usize::try_from(list.partials()).unwrap()];
        for (head, parts) in list.heads.iter().enumerate() {
            for part in 0..parts.parts {
                let partial = parts.first + part * parts.stride;
                let item = list.items[(partial / 6) as usize];
                assert_eq!((item.part, item.parts), (part, parts.parts));
                assert_eq!(item.first_head + partial % 6, u32::try_from(head).unwrap());
                assert_eq!(item.kv_head, u32::try_from(head).unwrap() / 12);
                assert!(
                    !std::mem::replace(&mut seen[partial as usize], true),
                    "one writer"
                );
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn no_part_has_more_keys_than_a_workgroup_serves() {
        let shape = HeadShape {
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
        };
        for span in [1, 64, 255, 256, 257, 512, 1000] {
            let mask = HeadMask {
                sink: 0,
                window: span,
            };
            for context in [1, 100, 256, 300, 5000] {
                let list = WorkList::new(&[mask], context, shape);
                for q_pos in 0..context {
                    assert!(mask.visible(q_pos).div_ceil(list.items[0].parts) <= DECODE_KEYS);
                }
            }
        }
    }
}
