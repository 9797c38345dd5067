//! Where a head's keys live: sink slots that never move, then a ring.
//!
//! A head keeps `ring = S(M) - sink + slack` slots beside its sink slots, no more than M in all. The key at
//! position p sits in slot p while p < sink, and in slot `sink + (p - sink) mod ring` after. Nothing is ever
//! moved or rotated; order inside the ring is irrelevant to softmax.
//!
//! **Rewinding.** Up to `slack` tokens that were already written may be taken back. Their slots then hold
//! positions at or past the length, while the layout says that they hold the positions one ring earlier. That
//! is harmless: those lie `ring >= window + slack` tokens back and so outside every window, which is why
//! kernels test positions and never whether a slot "is filled".

use std::ops::Range;

use crate::HeadMask;

/// The slots of one KV head's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Slots of the first tokens.
    pub sink: u32,
    /// Slots of the ring; 0 only where the context is no longer than the sink.
    pub ring: u32,
}

/// Which positions of a prefill chunk enter the cache; everything else of it is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Positions written to sink slots.
    pub sink: Range<u32>,
    /// Positions written to the ring: at most `ring` of them, so that each slot has one writer.
    pub ring: Range<u32>,
}

impl RingLayout {
    /// The slots for `mask` at a context of `context` tokens with `slack` tokens that may be taken back.
    pub fn new(mask: HeadMask, context: u32, slack: u32) -> Self {
        let sink = mask.sink.min(context);
        let ring = mask.window.saturating_add(slack).min(context - sink);
        Self { sink, ring }
    }

    /// All slots of the head.
    pub const fn slots(self) -> u32 {
        self.sink + self.ring
    }

    /// The slot of the key at position `k_pos`.
    pub const fn slot(self, k_pos: u32) -> u32 {
        if k_pos < self.sink || self.ring == 0 {
            k_pos
        } else {
            self.sink + (k_pos - self.sink) % self.ring
        }
    }

    /// The position that `slot` holds once `len` tokens have been written, or `None` while it is empty.
    pub const fn position(self, slot: u32, len: u32) -> Option<u32> {
        if slot < self.sink {
            return if slot < len { Some(slot) } else { None };
        }
        let index = slot - self.sink;
        if index >= self.ring || len <= self.sink + index {
            return None;
        }
        let newest = len - 1 - self.sink;
        Some(self.sink + newest - (newest - index) % self.ring)
    }

    /// Which of the positions `[start, start + len)` stay, when `[0, start)` was written before.
    pub fn commit(self, start: u32, len: u32) -> Commit {
        let end = start.saturating_add(len);
        let sink_end = self.sink.min(end);
        let first_other = start.max(self.sink);
        let ring_start = first_other
            .max(end.saturating_sub(self.ring))
            .min(end.max(first_other));
        Commit {
            sink: start.min(sink_end)..sink_end,
            ring: ring_start..end.max(ring_start),
        }
    }

    /// The slots that hold the positions `keys`, none of them in the sink and no more than a ring of them:
    /// one run, or two where the ring wraps.
    pub fn segments(self, keys: Range<u32>) -> [Range<u32>; 2] {
        let count = keys.end.saturating_sub(keys.start);
        if count == 0 {
            return [0..0, 0..0];
        }
        let first = self.slot(keys.start);
        let to_end = self.slots() - first;
        if count <= to_end {
            [first..first + count, 0..0]
        } else {
            [first..self.slots(), self.sink..self.sink + (count - to_end)]
        }
    }
}
