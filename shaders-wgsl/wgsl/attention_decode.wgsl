// Attention of the one query in flight over the cache, its own key included, split over a static work list.
//
// q  [heads][head_dim] f32, rotated            k_ring, v_ring  rows of keys and values
// items  one entry a workgroup: what a KV head sees, the query heads served (HEADS_PER_ITEM from first_head on, as far as
// the group goes), and which part of the visible keys: part n of m has the rounds n, n + m, n + 2 m and so on, so that the
// cost follows the span, not the context. With few keys only the first parts have any.
// partials  rows of head_dim values, row_max, row_sum; merge_lse joins them. Those of the first part lie by head.
// Grid: (items); a workgroup of 128. HEAD_DIM / 8 threads, a lane, share a key, each with 8 channels of every query
// in registers; a round takes four keys of each lane. A lane has its own online softmax; lanes are joined at
// the end. K and V of a round are on their way together. Only visible keys are touched: past the end the last one comes
// again, without weight.
// Numerics: f32; what is subtracted, and given on as row_max, is the largest score, or up to 8 less with subgroups.
// Twin: reference/src/attention_decode.rs.

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> partials: array<f32>;

const THREADS: u32 = 128u;
const HEAD_DIM4: u32 = HEAD_DIM / 4u;
const HEAD_DIM8: u32 = HEAD_DIM / 8u;
// Keys of a round that a thread has a part of.
const KEYS_PER_LANE: u32 = 4u;
const LANES: u32 = DECODE_ROUND / KEYS_PER_LANE;
// Lanes that are left once those of a subgroup are one.
const LANES_LEFT: u32 = LANES / LANES_TOGETHER;
// Channels of a thread whose sums workgroup memory holds at once.
const CHANNELS_AT_ONCE: u32 = select(8u, 4u, LANES_TOGETHER == 1u);

// [4][lane][thread of the lane]: of every thread one value for each of its keys, shares of scores; then sums.
var<workgroup> shares: array<Heads, DECODE_ROUND * HEAD_DIM8>;
// The scores of a round.
var<workgroup> scores: array<Heads, DECODE_ROUND>;
// Each lane's maximum, then each lane's sum of weights.
var<workgroup> lanes: array<Heads, 2u * LANES>;

// A thread's share of the scores of one key.
fn share_of(words: KvWords, low: array<Heads, 4>, high: array<Heads, 4>) -> Heads {
    let a = low_channels(words);
    let b = high_channels(words);
    return low[0] * a.x + low[1] * a.y + low[2] * a.z + low[3] * a.w
        + high[0] * b.x + high[1] * b.y + high[2] * b.z + high[3] * b.w;
}

fn weighted(sums: array<Heads, 4>, weight: Heads, value: vec4<f32>) -> array<Heads, 4> {
    return array<Heads, 4>(
        sums[0] + weight * value.x,
        sums[1] + weight * value.y,
        sums[2] + weight * value.z,
        sums[3] + weight * value.w,
    );
}

fn scaled(sums: array<Heads, 4>, factor: Heads) -> array<Heads, 4> {
    return array<Heads, 4>(
        sums[0] * factor,
        sums[1] * factor,
        sums[2] * factor,
        sums[3] * factor,
    );
}

// One of two sums, with what the neighboring lane has of it.
fn shared_sum(low: Heads, high: Heads, odd: bool) -> Heads {
    return select(low, high, odd) + of_thread(select(high, low, odd), HEAD_DIM8);
}

// The weights of the keys of a thread's lane in a round, and the lane's softmax with them. Where its maximum was raised,
// sums so far are multiplied with `shrink`.
struct Weights {
    of_keys: array<Heads, 4>,
    row_max: Heads,
    row_sum: Heads,
    raised: bool,
    shrink: Heads,
}

// Where a sum lies: channels of a thread begin elsewhere, so that neighbors among those who add up read different banks.
fn sum_slot(channel: u32, lane: u32, channel8: u32) -> u32 {
    return (channel * LANES_LEFT + lane) * HEAD_DIM8 + (channel8 + channel) % HEAD_DIM8;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let item = items[group.x];
    let causal = state.start + 1u;
    let visible = visible_keys(item, causal);
    let first = item.part * DECODE_ROUND;
    // Nobody reads the result of a part without keys.
    if (state.len == 0u || first >= visible) {
        return;
    }
    // The visible keys lie in the sink, in the ring from where its oldest one is to its end, and from its start on.
    let sink_end = min(causal, item.sink);
    let oldest = (causal - visible) % max(item.ring, 1u);
    let wrap_at = item.ring - oldest + sink_end;

    let lane = thread / HEAD_DIM8;
    let channel8 = thread % HEAD_DIM8;
    // Threads beyond the last lane do its work once more and store nothing.
    let own_lane = min(lane, LANES - 1u);
    let stores = lane < LANES;
    let slot = own_lane * HEAD_DIM8 + channel8;
    let q_low = load_queries(item.first_head, 2u * channel8);
    let q_high = load_queries(item.first_head, 2u * channel8 + 1u);

    let zero = Heads(0.0);
    var sums_low = array<Heads, 4>(zero, zero, zero, zero);
    var sums_high = array<Heads, 4>(zero, zero, zero, zero);
    var row_max = Heads(UNSEEN);
    var row_sum = zero;
    for (var round = first; round < visible; round += item.parts * DECODE_ROUND) {
        let key = min(vec4<u32>(round + own_lane) + LANES * vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(visible - 1u));
        let in_ring = select(vec4<u32>(oldest), vec4<u32>(oldest - item.ring), key >= vec4<u32>(wrap_at));
        let row = item.slot_offset + key + select(in_ring, vec4<u32>(0u), key < vec4<u32>(sink_end));
        let k_0 = load_k(row.x, channel8);
        let k_1 = load_k(row.y, channel8);
        let k_2 = load_k(row.z, channel8);
        let k_3 = load_k(row.w, channel8);
        let v_0 = load_v(row.x, channel8);
        let v_1 = load_v(row.y, channel8);
        let v_2 = load_v(row.z, channel8);
        let v_3 = load_v(row.w, channel8);
        let parts = array<Heads, 4>(
            share_of(k_0, q_low, q_high),
            share_of(k_1, q_low, q_high),
            share_of(k_2, q_low, q_high),
            share_of(k_3, q_low, q_high),
        );
        let weights = weights_of(thread, own_lane, slot, stores, parts, round, visible, row_max, row_sum);
        row_max = weights.row_max;
        row_sum = weights.row_sum;
        if (weights.raised && round > first) {
            sums_low = scaled(sums_low, weights.shrink);
            sums_high = scaled(sums_high, weights.shrink);
        }
        let w = weights.of_keys;
        sums_low = weighted(weighted(sums_low, w[0], low_channels(v_0)), w[1], low_channels(v_1));
        sums_high = weighted(weighted(sums_high, w[0], high_channels(v_0)), w[1], high_channels(v_1));
        sums_low = weighted(weighted(sums_low, w[2], low_channels(v_2)), w[3], low_channels(v_3));
        sums_high = weighted(weighted(sums_high, w[2], high_channels(v_2)), w[3], high_channels(v_3));
    }
    row_sum = lane_sum(row_sum);

    var sums = sums_low;
    if (LANES_TOGETHER > 1u) {
        // Even lanes of a subgroup take the sums of four channels, odd ones those of the others.
        var top = row_max;
        for (var step = HEAD_DIM8; step < LANES_TOGETHER * HEAD_DIM8; step *= 2u) {
            top = max(top, of_thread(top, step));
        }
        let shrink = exp(row_max - top);
        row_max = top;
        row_sum *= shrink;
        row_sum += of_thread(row_sum, HEAD_DIM8);
        let odd = (lane & 1u) != 0u;
        sums = array<Heads, 4>(
            shared_sum(sums_low[0] * shrink, sums_high[0] * shrink, odd),
            shared_sum(sums_low[1] * shrink, sums_high[1] * shrink, odd),
            shared_sum(sums_low[2] * shrink, sums_high[2] * shrink, odd),
            shared_sum(sums_low[3] * shrink, sums_high[3] * shrink, odd),
        );
        for (var step = 2u * HEAD_DIM8; step < LANES_TOGETHER * HEAD_DIM8; step *= 2u) {
            row_sum += of_thread(row_sum, step);
            sums[0] += of_thread(sums[0], step);
            sums[1] += of_thread(sums[1], step);
            sums[2] += of_thread(sums[2], step);
            sums[3] += of_thread(sums[3], step);
        }
    }

    // What is left of the lanes goes through workgroup memory.
    let left = lane / LANES_TOGETHER;
    if (stores && thread % (LANES_TOGETHER * HEAD_DIM8) == 0u) {
        lanes[left] = row_max;
        lanes[LANES + left] = row_sum;
    }
    // A thread has the same head throughout.
    let head = thread % HEADS_WIDTH;
    let own_head = item.first_head + head;
    let serves = head < HEADS_PER_ITEM && item.first_head % GQA_GROUP + head < GQA_GROUP;
    let later = item.first_row + item.part * GQA_GROUP + own_head % GQA_GROUP;
    let at = select(later, own_head, item.part == 0u) * PARTIAL;
    for (var first_channel = 0u; first_channel < 8u; first_channel += CHANNELS_AT_ONCE) {
        if (first_channel > 0u) {
            workgroupBarrier();
            sums = sums_high;
        }
        if (stores && lane % LANES_TOGETHER < CHANNELS_AT_ONCE / 4u) {
            let channel = 4u * (lane % LANES_TOGETHER);
            shares[sum_slot(channel, left, channel8)] = sums[0];
            shares[sum_slot(channel + 1u, left, channel8)] = sums[1];
            shares[sum_slot(channel + 2u, left, channel8)] = sums[2];
            shares[sum_slot(channel + 3u, left, channel8)] = sums[3];
        }
        workgroupBarrier();
        var part_max = UNSEEN;
        var total = 0.0;
        for (var other = 0u; other < LANES_LEFT; other += 1u) {
            part_max = max(part_max, lane_of_head(other, head));
        }
        // So many times whatever the thread, so that what does not depend on the channel is found once.
        for (var turn = 0u; turn < CHANNELS_AT_ONCE * HEAD_DIM8; turn += THREADS / HEADS_WIDTH) {
            let index = turn + thread / HEADS_WIDTH;
            let channel = index % CHANNELS_AT_ONCE;
            let own8 = index / CHANNELS_AT_ONCE;
            var sum = 0.0;
            total = 0.0;
            for (var other = 0u; other < LANES_LEFT; other += 1u) {
                let weight = exp(lane_of_head(other, head) - part_max);
                total += weight * lane_of_head(LANES + other, head);
                sum += weight * share_of_head(sum_slot(channel, other, own8), head);
            }
            if (serves && own8 < HEAD_DIM8) {
                partials[at + 8u * own8 + first_channel + channel] = sum;
            }
        }
        if (serves && thread < HEADS_WIDTH) {
            partials[at + HEAD_DIM] = part_max;
            partials[at + HEAD_DIM + 1u] = total;
        }
    }
}
