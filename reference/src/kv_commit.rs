//! Twin of `kv_commit`: a chunk's rows into one KV head's slots, as `moa_mask::RingLayout` says.

use moa_mask::RingLayout;

/// Rows `[len]` of positions `start..start + len` into `slots` `[layout.slots()]`, both of `width` values.
pub fn kv_commit<T: Copy>(
    slots: &mut [T],
    rows: &[T],
    width: usize,
    layout: RingLayout,
    start: u32,
) {
    let len = (rows.len() / width) as u32;
    let commit = layout.commit(start, len);
    for position in commit.sink.chain(commit.ring) {
        let (from, to) = (
            (position - start) as usize * width,
            layout.slot(position) as usize * width,
        );
        slots[to..to + width].copy_from_slice(&rows[from..from + width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_chunk_leaves_its_sink_and_its_end() {
        let layout = RingLayout { sink: 2, ring: 3 };
        let mut slots = [0u32; 5];
        kv_commit(&mut slots, &[10, 11, 12, 13, 14, 15, 16, 17], 1, layout, 0);
        // Position p >= 2 sits in slot 2 + (p - 2) % 3.
        assert_eq!(slots, [10, 11, 15, 16, 17]);
        kv_commit(&mut slots, &[18], 1, layout, 8);
        assert_eq!(slots, [10, 11, 18, 16, 17]);
    }
}
