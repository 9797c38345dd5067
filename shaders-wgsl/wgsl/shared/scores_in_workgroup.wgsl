// The weights of a round of decode attention, through workgroup memory.

// Lanes know of each other through workgroup memory alone.
const LANES_TOGETHER: u32 = 1u;

fn of_thread(value: Heads, step: u32) -> Heads {
    return value;
}

// Out of every thread's share of the scores, by its lane, its place in `shares`, and whether it is none beyond the last lane;
// keys past the end weigh nothing.
fn weights_of(
    thread: u32,
    lane: u32,
    slot: u32,
    stores: bool,
    parts: array<Heads, 4>,
    round: u32,
    end: u32,
    row_max: Heads,
    row_sum: Heads,
) -> Weights {
    if (stores) {
        shares[slot] = parts[0];
        shares[LANES * HEAD_DIM8 + slot] = parts[1];
        shares[2u * LANES * HEAD_DIM8 + slot] = parts[2];
        shares[3u * LANES * HEAD_DIM8 + slot] = parts[3];
    }
    workgroupBarrier();
    for (var key = thread; key < DECODE_ROUND; key += THREADS) {
        var score = Heads(0.0);
        for (var other = 0u; other < HEAD_DIM8; other += 1u) {
            // Each key begins elsewhere, so that neighboring threads read different banks.
            score += shares[key * HEAD_DIM8 + (key + other) % HEAD_DIM8];
        }
        scores[key] = select(Heads(UNSEEN), score * SOFTMAX_SCALE, round + key < end);
    }
    workgroupBarrier();
    let a = scores[lane];
    let b = scores[LANES + lane];
    let c = scores[2u * LANES + lane];
    let d = scores[3u * LANES + lane];
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
