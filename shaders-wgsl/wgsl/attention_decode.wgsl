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

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> partials: array<f32>;

const THREADS: u32 = 128u;
const HEAD_DIM4: u32 = HEAD_DIM / 4u;
const HEAD_DIM8: u32 = HEAD_DIM / 8u;
// Keys of a round that a thread has a part of.
const KEYS_PER_LANE: u32 = 4u;
const LANES: u32 = DECODE_ROUND / KEYS_PER_LANE;

// Of every thread one value for each of its keys, [key of the round][thread of the lane]: shares of scores, or sums.
var<workgroup> shares: array<Heads, DECODE_ROUND * HEAD_DIM8>;
// The scores of a round, then the lanes' maxima.
var<workgroup> scores: array<Heads, DECODE_ROUND>;
// Each lane's sum of weights, then the part's maximum.
var<workgroup> lane_sums: array<Heads, LANES + 1u>;

// Where the visible keys lie: those of the sink, those of the ring up to its end, those from its start on.
struct Keys {
    last: u32,
    sink_end: u32,
    wrap_at: u32,
    // What leads from a key's place among the visible ones to its row.
    in_sink: u32,
    in_ring: u32,
    wrapped: u32,
}

// The rows of the keys that a thread takes in a round; past the end of what is visible its last key.
fn rows_of(keys: Keys, first: u32) -> vec4<u32> {
    let key = min(vec4<u32>(first) + LANES * vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(keys.last));
    let in_ring = select(vec4<u32>(keys.in_ring), vec4<u32>(keys.wrapped), key >= vec4<u32>(keys.wrap_at));
    return key + select(in_ring, vec4<u32>(keys.in_sink), key < vec4<u32>(keys.sink_end));
}

fn four_k(rows: vec4<u32>, channel8: u32) -> array<KvWords, 4> {
    return array<KvWords, 4>(
        load_k(rows.x, channel8),
        load_k(rows.y, channel8),
        load_k(rows.z, channel8),
        load_k(rows.w, channel8),
    );
}

fn four_v(rows: vec4<u32>, channel8: u32) -> array<KvWords, 4> {
    return array<KvWords, 4>(
        load_v(rows.x, channel8),
        load_v(rows.y, channel8),
        load_v(rows.z, channel8),
        load_v(rows.w, channel8),
    );
}

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

// A thread among the others: its lane, its place in `shares`, and whether it is none beyond the last lane.
struct Place {
    thread: u32,
    lane: u32,
    slot: u32,
    stores: bool,
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

// Whether there is such a head among those served.
fn serves(item: SpanPart, head: u32) -> bool {
    return head < HEADS_PER_ITEM && item.first_head % GQA_GROUP + head < GQA_GROUP;
}

// Where the part's partial result of a head lies.
fn partial_at(item: SpanPart, head: u32) -> u32 {
    let later = item.first_row + item.part * GQA_GROUP + item.first_head % GQA_GROUP + head;
    return select(later, item.first_head + head, item.part == 0u) * PARTIAL;
}

// Adds up over the lanes what lies in `shares`: of each thread's eight channels KEYS_PER_LANE from first_channel on.
fn write_channels(item: SpanPart, first_channel: u32, thread: u32) {
    workgroupBarrier();
    for (var index = thread; index < HEAD_DIM8 * KEYS_PER_LANE * HEADS_WIDTH; index += THREADS) {
        let head = index % HEADS_WIDTH;
        let channel = (index / HEADS_WIDTH) % KEYS_PER_LANE;
        let channel8 = index / (HEADS_WIDTH * KEYS_PER_LANE);
        if (serves(item, head)) {
            var sum = 0.0;
            for (var lane = 0u; lane < LANES; lane += 1u) {
                sum += share_of_head((channel * LANES + lane) * HEAD_DIM8 + channel8, head);
            }
            partials[partial_at(item, head) + 8u * channel8 + first_channel + channel] = sum;
        }
    }
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
    let sink_end = min(causal, item.sink);
    let ring_start = (causal - visible) % max(item.ring, 1u);
    let in_ring = item.slot_offset + ring_start;
    let keys = Keys(
        visible - 1u,
        sink_end,
        item.ring - ring_start + sink_end,
        item.slot_offset,
        in_ring,
        in_ring - item.ring,
    );

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
        let rows = rows_of(keys, round + own_lane);
        let k = four_k(rows, channel8);
        let v = four_v(rows, channel8);
        let parts = array<Heads, 4>(
            share_of(k[0], q_low, q_high),
            share_of(k[1], q_low, q_high),
            share_of(k[2], q_low, q_high),
            share_of(k[3], q_low, q_high),
        );
        let weights = weights_of(Place(thread, own_lane, slot, stores), parts, round, visible, row_max, row_sum);
        row_max = weights.row_max;
        row_sum = weights.row_sum;
        if (weights.raised) {
            sums_low = scaled(sums_low, weights.shrink);
            sums_high = scaled(sums_high, weights.shrink);
        }
        let w = weights.of_keys;
        sums_low = weighted(weighted(sums_low, w[0], low_channels(v[0])), w[1], low_channels(v[1]));
        sums_high = weighted(weighted(sums_high, w[0], high_channels(v[0])), w[1], high_channels(v[1]));
        sums_low = weighted(weighted(sums_low, w[2], low_channels(v[2])), w[3], low_channels(v[3]));
        sums_high = weighted(weighted(sums_high, w[2], high_channels(v[2])), w[3], high_channels(v[3]));
    }
    row_sum = lane_sum(row_sum);

    // The lanes' maxima take the place of scores, which the last round has read.
    workgroupBarrier();
    if (stores && channel8 == 0u) {
        scores[lane] = row_max;
    }
    workgroupBarrier();
    var part_max = row_max;
    for (var other = 0u; other < LANES; other += 1u) {
        part_max = max(part_max, scores[other]);
    }
    let shrink = exp(row_max - part_max);
    sums_low = scaled(sums_low, shrink);
    sums_high = scaled(sums_high, shrink);
    if (stores) {
        if (channel8 == 0u) {
            lane_sums[lane] = row_sum * shrink;
        }
        shares[slot] = sums_low[0];
        shares[LANES * HEAD_DIM8 + slot] = sums_low[1];
        shares[2u * LANES * HEAD_DIM8 + slot] = sums_low[2];
        shares[3u * LANES * HEAD_DIM8 + slot] = sums_low[3];
    }
    if (thread == 0u) {
        lane_sums[LANES] = part_max;
    }
    write_channels(item, 0u, thread);
    if (serves(item, thread)) {
        var total = 0.0;
        for (var other = 0u; other < LANES; other += 1u) {
            total += lane_sum_of_head(other, thread);
        }
        let at = partial_at(item, thread) + HEAD_DIM;
        partials[at] = lane_sum_of_head(LANES, thread);
        partials[at + 1u] = total;
    }
    workgroupBarrier();
    if (stores) {
        shares[slot] = sums_high[0];
        shares[LANES * HEAD_DIM8 + slot] = sums_high[1];
        shares[2u * LANES * HEAD_DIM8 + slot] = sums_high[2];
        shares[3u * LANES * HEAD_DIM8 + slot] = sums_high[3];
    }
    write_channels(item, 4u, thread);
}
