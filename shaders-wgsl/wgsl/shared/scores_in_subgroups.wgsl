// The scores of a round of decode attention, by exchange among the threads of a lane, which share a subgroup: their
// number is a power of two and no more than SUBGROUP. Lanes do not wait for each other.

// A thread among the others: its lane, its place in `shares`, and whether it is none beyond the last lane.
struct Place {
    thread: u32,
    lane: u32,
    slot: u32,
    stores: bool,
}

fn score_of(sum: Heads, key: u32, end: u32) -> Heads {
    return select(all_heads(UNSEEN), sum * SOFTMAX_SCALE, key < end);
}

// The scores of the keys of a thread's lane, out of every thread's share; UNSEEN past the end of the part.
fn scores_of(place: Place, parts: array<Heads, 4>, round: u32, end: u32) -> array<Heads, 4> {
    var a = parts[0];
    var b = parts[1];
    var c = parts[2];
    var d = parts[3];
    for (var step = 1u; step < HEAD_DIM8; step *= 2u) {
        a += subgroupShuffleXor(a, step);
        b += subgroupShuffleXor(b, step);
        c += subgroupShuffleXor(c, step);
        d += subgroupShuffleXor(d, step);
    }
    let key = round + place.lane;
    return array<Heads, 4>(
        score_of(a, key, end),
        score_of(b, key + LANES, end),
        score_of(c, key + 2u * LANES, end),
        score_of(d, key + 3u * LANES, end),
    );
}
