// The weights of a round of decode attention, through workgroup memory.

// Out of every thread's share of the scores; keys past the end of the part weigh nothing.
fn weights_of(
    place: Place,
    parts: array<Heads, 4>,
    round: u32,
    end: u32,
    row_max: Heads,
    row_sum: Heads,
) -> Weights {
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
            score = Heads(UNSEEN);
        }
        scores[key] = score;
    }
    workgroupBarrier();
    let a = scores[place.lane];
    let b = scores[LANES + place.lane];
    let c = scores[2u * LANES + place.lane];
    let d = scores[3u * LANES + place.lane];
    let new_max = max(max(row_max, max(a, b)), max(c, d));
    // A lane that has seen no key yet gathers nonsense, which its maximum takes away in the end.
    let shrink = exp(row_max - new_max);
    let weights = array<Heads, 4>(
        exp(a - new_max),
        exp(b - new_max),
        exp(c - new_max),
        exp(d - new_max),
    );
    let sum = row_sum * shrink + ((weights[0] + weights[1]) + (weights[2] + weights[3]));
    return Weights(weights, new_max, sum, true, shrink);
}

// Every thread of the lane has its sum of weights.
fn lane_sum(row_sum: Heads) -> Heads {
    return row_sum;
}
