// The scores of a round of decode attention, through workgroup memory.

// A thread among the others: its lane, its place in `shares`, and whether it is none beyond the last lane.
struct Place {
    thread: u32,
    lane: u32,
    slot: u32,
    stores: bool,
}

// The scores of the keys of a thread's lane, out of every thread's share; UNSEEN past the end of the part.
fn scores_of(place: Place, parts: array<Heads, 4>, round: u32, end: u32) -> array<Heads, 4> {
    if (place.stores) {
        shares[place.slot] = parts[0];
        shares[LANES * HEAD_DIM8 + place.slot] = parts[1];
        shares[2u * LANES * HEAD_DIM8 + place.slot] = parts[2];
        shares[3u * LANES * HEAD_DIM8 + place.slot] = parts[3];
    }
    workgroupBarrier();
    for (var key = place.thread; key < DECODE_ROUND; key += THREADS) {
        var score = shares[key * HEAD_DIM8 + key % HEAD_DIM8];
        for (var other = 1u; other < HEAD_DIM8; other += 1u) {
            // Each key begins elsewhere, so that neighboring threads read different banks.
            score += shares[key * HEAD_DIM8 + (key + other) % HEAD_DIM8];
        }
        if (round + key < end) {
            score = score * SOFTMAX_SCALE;
        } else {
            score = all_heads(UNSEEN);
        }
        scores[key] = score;
    }
    workgroupBarrier();
    return array<Heads, 4>(
        scores[place.lane],
        scores[LANES + place.lane],
        scores[2u * LANES + place.lane],
        scores[3u * LANES + place.lane],
    );
}
