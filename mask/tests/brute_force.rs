//! Ranges, rings and commits against the predicate, for every small case.

use moa_mask::{HeadMask, RingLayout, ranges};

fn masks() -> impl Iterator<Item = HeadMask> {
    [0, 1, 4, 8]
        .into_iter()
        .flat_map(|sink| [1, 2, 3, 5, 8, 13, 40].map(|window| HeadMask { sink, window }))
}

#[test]
fn prefill_ranges_cover_exactly_the_visible_keys() {
    for mask in masks() {
        for q_start in 0..40 {
            for q_len in 1..24 {
                let queries = q_start..q_start + q_len;
                let keys = ranges::prefill(mask, q_start, q_len);
                assert!(keys.sink.end <= keys.local.start.max(mask.sink));
                for k_pos in 0..q_start + q_len + 3 {
                    let seen_by_any = queries.clone().any(|q_pos| mask.attends(q_pos, k_pos));
                    let seen_by_all = queries.clone().all(|q_pos| mask.attends(q_pos, k_pos));
                    let listed = keys.sink.contains(&k_pos) || keys.local.contains(&k_pos);
                    assert_eq!(listed, seen_by_any, "{mask:?} {queries:?} key {k_pos}");
                    if k_pos >= mask.sink {
                        assert_eq!(
                            keys.inner.contains(&k_pos),
                            seen_by_all,
                            "{mask:?} {queries:?} inner {k_pos}"
                        );
                    }
                }
                for tile_k in [1, 3, 4, 16] {
                    let mut covered = 0;
                    for tile in keys.tiles(q_start, tile_k) {
                        assert!(tile.end > tile.start && tile.end - tile.start <= tile_k);
                        covered += tile.end - tile.start;
                        let all = (tile.start..tile.end)
                            .all(|k_pos| queries.clone().all(|q_pos| mask.attends(q_pos, k_pos)));
                        assert!(
                            all || tile.edge,
                            "{mask:?} {queries:?} {tile:?}: a cut tile must be an edge"
                        );
                        assert!(
                            !all || !tile.edge,
                            "{mask:?} {queries:?} {tile:?}: a full tile must not be tested"
                        );
                    }
                    assert_eq!(covered, keys.len());
                }
            }
        }
    }
}

#[test]
fn decode_range_is_the_row_of_the_predicate() {
    for mask in masks() {
        for q_pos in 0..80 {
            let keys = ranges::decode(mask, q_pos);
            assert_eq!(keys.len(), mask.visible(q_pos));
            for k_pos in 0..q_pos + 2 {
                assert_eq!(
                    keys.sink.contains(&k_pos) || keys.local.contains(&k_pos),
                    mask.attends(q_pos, k_pos)
                );
            }
        }
    }
}

/// A cache that is driven as the engine drives it and remembers which position each slot holds.
struct Cache {
    layout: RingLayout,
    held: Vec<Option<u32>>,
    len: u32,
}

impl Cache {
    fn new(mask: HeadMask, context: u32, slack: u32) -> Self {
        let layout = RingLayout::new(mask, context, slack);
        Self {
            layout,
            held: vec![None; layout.slots() as usize],
            len: 0,
        }
    }

    fn write(&mut self, chunk: u32) {
        let commit = self.layout.commit(self.len, chunk);
        let mut writers = vec![0; self.held.len()];
        for k_pos in commit.sink.chain(commit.ring) {
            let slot = self.layout.slot(k_pos) as usize;
            self.held[slot] = Some(k_pos);
            writers[slot] += 1;
        }
        assert!(writers.iter().all(|&count| count <= 1), "one writer a slot");
        self.len += chunk;
    }

    /// Every key that the next query may see must sit where the layout says, past keys only.
    fn check(&self, mask: HeadMask) {
        let q_pos = self.len;
        for k_pos in (0..self.len).filter(|&k_pos| mask.attends(q_pos, k_pos)) {
            let slot = self.layout.slot(k_pos);
            assert_eq!(
                self.held[slot as usize],
                Some(k_pos),
                "{mask:?} {:?} len {} key {k_pos}",
                self.layout,
                self.len
            );
            assert_eq!(self.layout.position(slot, self.len), Some(k_pos));
        }
        for slot in 0..self.layout.slots() {
            let claimed = self.layout.position(slot, self.len);
            if let Some(k_pos) = claimed.filter(|&k_pos| mask.attends(q_pos, k_pos)) {
                assert_eq!(
                    self.held[slot as usize],
                    Some(k_pos),
                    "a visible position must be the one held"
                );
            }
        }
        let keys = ranges::decode(mask, q_pos).local;
        let past = keys.start.min(self.len)..self.len;
        let [a, b] = self.layout.segments(past.clone());
        let listed: Vec<u32> = a.chain(b).collect();
        let expected: Vec<u32> = past.map(|k_pos| self.layout.slot(k_pos)).collect();
        assert_eq!(
            listed, expected,
            "segments list the slots of the window in order"
        );
    }
}

#[test]
fn rings_hold_every_visible_key_whatever_the_chunks() {
    let context = 120;
    for mask in masks() {
        for slack in [0, 1, 5, 64] {
            for chunk in [1, 2, 7, 13, 50, 120] {
                let mut cache = Cache::new(mask, context, slack);
                cache.check(mask);
                while cache.len < context {
                    cache.write(chunk.min(context - cache.len));
                    cache.check(mask);
                }
            }
        }
    }
}

#[test]
fn rewinds_within_the_slack_are_exact() {
    let context = 120;
    let slack = 6;
    for mask in masks() {
        for chunk in [1, 3, 30] {
            for back in 1..=slack {
                let mut cache = Cache::new(mask, context, slack);
                while cache.len + chunk + slack <= context {
                    cache.write(chunk);
                    for _ in 0..back {
                        cache.write(1);
                    }
                    cache.len -= back;
                    cache.check(mask);
                    // What is written again after a rewind must leave the state of an uninterrupted run.
                    cache.write(1);
                    cache.check(mask);
                }
            }
        }
    }
}

#[test]
fn two_tokens_past_the_slack_are_not_exact() {
    // The negative control: without this the test above could pass on a cache that never forgets. (The next
    // query brings its own key, so a ring of window + slack has one slot to spare.)
    let mask = HeadMask { sink: 0, window: 8 };
    let slack = 2;
    let mut cache = Cache::new(mask, 120, slack);
    cache.write(60);
    for _ in 0..slack + 2 {
        cache.write(1);
    }
    cache.len -= slack + 2;
    let needed = cache.len + 1 - mask.window;
    assert_ne!(cache.held[cache.layout.slot(needed) as usize], Some(needed));
}
