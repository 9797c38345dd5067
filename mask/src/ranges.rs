//! Which keys a tile of queries must touch: loop bounds for prefill and decode.
//!
//! A kernel walks [`KeyRanges`] and loads nothing else. Inside `inner` every query of the tile sees
//! every key, so the predicate need not be asked there; only the rest is tested key by key.

use std::ops::Range;

use crate::HeadMask;

/// The keys that at least one query of a tile sees, as two disjoint ranges in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRanges {
    /// Visible sink keys.
    pub sink: Range<u32>,
    /// Visible keys from the end of the sink on.
    pub local: Range<u32>,
    /// The part of `local` that every query of the tile sees; may be empty.
    pub inner: Range<u32>,
}

/// A run of keys `[start, end)` that a kernel loads at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// First key.
    pub start: u32,
    /// One past the last key.
    pub end: u32,
    /// Whether some query of the tile does not see some key here, so that the predicate must be tested.
    pub edge: bool,
}

/// Keys of the queries at positions `[q_start, q_start + q_len)`; `q_len` of at least 1.
pub fn prefill(mask: HeadMask, q_start: u32, q_len: u32) -> KeyRanges {
    let q_end = q_start.saturating_add(q_len.max(1));
    let q_last = q_end - 1;
    let sink = 0..mask.sink.min(q_end);
    let local = mask.window_start(q_start)..q_end.max(mask.sink);
    let inner_start = mask.window_start(q_last);
    let inner_end = (q_start + 1).max(inner_start).min(local.end);
    KeyRanges {
        sink,
        local,
        inner: inner_start..inner_end,
    }
}

/// Keys of the one query at position `q_pos`.
pub fn decode(mask: HeadMask, q_pos: u32) -> KeyRanges {
    prefill(mask, q_pos, 1)
}

impl KeyRanges {
    /// Number of keys in both ranges.
    pub fn len(&self) -> u32 {
        (self.sink.end - self.sink.start) + (self.local.end - self.local.start)
    }

    /// Whether there is no key at all, which no query position gives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ranges cut into tiles of at most `tile_k` keys, `q_start` being the first query.
    ///
    /// Sink tiles are edges only where the first query's causal limit cuts them.
    pub fn tiles(&self, q_start: u32, tile_k: u32) -> impl Iterator<Item = Tile> + '_ {
        let cut = move |range: Range<u32>| {
            let step = tile_k.max(1);
            (0..(range.end.saturating_sub(range.start)).div_ceil(step)).map(move |index| {
                let start = range.start + index * step;
                start..range.end.min(start.saturating_add(step))
            })
        };
        let inner = self.inner.clone();
        cut(self.sink.clone())
            .map(move |keys| Tile {
                start: keys.start,
                end: keys.end,
                edge: keys.end > q_start + 1,
            })
            .chain(cut(self.local.clone()).map(move |keys| Tile {
                start: keys.start,
                end: keys.end,
                edge: keys.start < inner.start || keys.end > inner.end,
            }))
    }
}
