// The weights of a round of decode attention, by exchange among the threads of a lane, which share a subgroup: their
// number is a power of two, at least 4 and no more than SUBGROUP. Lanes do not wait for each other.
//
// A quarter of a lane's threads ends up with one key of the four: it gets the others' shares of that key and gives its
// own of the other keys away, and it alone finds the key's weights, which then go to all threads of the lane. Its sum of
// weights is that of its key until the end. The maximum is raised only where a score is well above it: weights up to
// e^8 are as exact as those up to 1.

const QUARTER: u32 = HEAD_DIM8 / 4u;
const HALF_LANE: u32 = HEAD_DIM8 / 2u;
const ROOM: f32 = 8.0;
// Lanes of a subgroup.
const LANES_TOGETHER: u32 = min(SUBGROUP / HEAD_DIM8, LANES);

// What a thread has that is so many threads away.
fn of_thread(value: Heads, step: u32) -> Heads {
    return subgroupShuffleXor(value, step);
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
    let second_half = (thread & HALF_LANE) != 0u;
    let odd = (thread & QUARTER) != 0u;
    var a = select(parts[0], parts[2], second_half);
    var b = select(parts[1], parts[3], second_half);
    a += of_thread(select(parts[2], parts[0], second_half), HALF_LANE);
    b += of_thread(select(parts[3], parts[1], second_half), HALF_LANE);
    var score = select(a, b, odd) + of_thread(select(b, a, odd), QUARTER);
    for (var step = 1u; step < QUARTER; step *= 2u) {
        score += of_thread(score, step);
    }
    let own_key = 2u * u32(second_half) + u32(odd);
    score = select(Heads(UNSEEN), score * SOFTMAX_SCALE, round + own_key * LANES + lane < end);

    var all = Weights(parts, row_max, row_sum, false, row_max);
    all.raised = subgroupAny(any(score > row_max + ROOM));
    if (all.raised) {
        var top = max(score, of_thread(score, QUARTER));
        top = max(row_max, max(top, of_thread(top, HALF_LANE)));
        // A lane that has seen no key yet gathers nonsense, which its maximum takes away in the end.
        all.shrink = exp(row_max - top);
        all.row_max = top;
        all.row_sum = row_sum * all.shrink;
    }
    let weight = exp(score - all.row_max);
    all.row_sum += weight;
    let other = of_thread(weight, QUARTER);
    let first = select(weight, other, odd);
    let second = select(other, weight, odd);
    let across_first = of_thread(first, HALF_LANE);
    let across_second = of_thread(second, HALF_LANE);
    all.of_keys[0] = select(first, across_first, second_half);
    all.of_keys[1] = select(second, across_second, second_half);
    all.of_keys[2] = select(across_first, first, second_half);
    all.of_keys[3] = select(across_second, second, second_half);
    return all;
}

// The sum of weights of all keys of the lane.
fn lane_sum(row_sum: Heads) -> Heads {
    var sum = row_sum + of_thread(row_sum, QUARTER);
    sum += of_thread(sum, HALF_LANE);
    return sum;
}
