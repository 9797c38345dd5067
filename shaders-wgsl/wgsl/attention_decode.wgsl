// Attention of the one query in flight over the cache, its own key included, split over a static work list.
//
// q  [heads][head_dim] f32, rotated            k_ring, v_ring  rows of f16 by ring_row
// items  one entry a workgroup: a KV head, the query heads served (HEADS_PER_ITEM from first_head on), and which
// part of the visible keys; at most DECODE_KEYS keys a part, so all workgroups are alike and the cost follows
// the span, not the context. While fewer keys are there than the span allows, the parts are smaller.
// partials  [item][HEADS_PER_ITEM] rows of head_dim values, row_max, row_sum; merge_lse joins them
// Grid: (items); a workgroup of 128. Only visible keys are touched: the list of keys is the sink's, then the
// window's, and there is nothing to mask.
// Numerics: f32, the part's maximum subtracted. Twin: reference/src/attention_decode.rs.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> k_ring: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> v_ring: array<u32>;
@group(0) @binding(5) var<storage, read> spans: array<HeadSpan>;
@group(0) @binding(6) var<storage, read> items: array<DecodeItem>;
@group(0) @binding(7) var<storage, read_write> partials: array<f32>;

const THREADS: u32 = 128u;
const HEAD_DIM4: u32 = HEAD_DIM / 4u;
const HEAD_DIM8: u32 = HEAD_DIM / 8u;
const PARTIAL: u32 = HEAD_DIM + 2u;
// In the weighted sum of V a thread holds a pair of channels; the threads beyond take other keys.
const PAIRS: u32 = HEAD_DIM / 2u;
const LANES: u32 = THREADS / PAIRS;

var<workgroup> queries: array<vec4<f32>, HEADS_PER_ITEM * HEAD_DIM4>;
// Scores, then weights [head][key], then the lanes' sums [lane][head][channel].
var<workgroup> scores: array<f32, HEADS_PER_ITEM * DECODE_KEYS>;
var<workgroup> key_rows: array<u32, DECODE_KEYS>;
var<workgroup> sixteenths: array<f32, 128>;

fn dot8(words: vec4<u32>, head: u32, channel8: u32) -> f32 {
    let low = vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
    let high = vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w));
    let at = head * HEAD_DIM4 + 2u * channel8;
    return dot(low, queries[at]) + dot(high, queries[at + 1u]);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (state.len == 0u) {
        return;
    }
    let item = items[group.x];
    let span = spans[item.kv_head];
    let q_pos = state.start;
    // The visible keys in order: sink_end of the sink, then those from local_start to q_pos.
    let sink_end = min(span.sink, q_pos + 1u);
    let local_start = window_start(span, q_pos);
    let visible = sink_end + (max(q_pos + 1u, local_start) - local_start);
    let share = (visible + item.parts - 1u) / item.parts;
    let first = min(item.part * share, visible);
    let keys = min(share, visible - first);

    for (var index = thread; index < HEADS_PER_ITEM * HEAD_DIM4; index += THREADS) {
        queries[index] = q[item.first_head * HEAD_DIM4 + index];
    }
    for (var key = thread; key < keys; key += THREADS) {
        let nth = first + key;
        let k_pos = select(local_start + (nth - sink_end), nth, nth < sink_end);
        key_rows[key] = ring_row(span, k_pos);
    }
    workgroupBarrier();

    for (var key = thread; key < keys; key += THREADS) {
        let at = key_rows[key] * HEAD_DIM8;
        // Browsers set an array without an initializer to zero once, not in every round of a loop.
        var sums = array<f32, HEADS_PER_ITEM>();
        for (var channel8 = 0u; channel8 < HEAD_DIM8; channel8 += 1u) {
            let words = k_ring[at + channel8];
            for (var head = 0u; head < HEADS_PER_ITEM; head += 1u) {
                sums[head] += dot8(words, head, channel8);
            }
        }
        for (var head = 0u; head < HEADS_PER_ITEM; head += 1u) {
            scores[head * DECODE_KEYS + key] = sums[head] * SOFTMAX_SCALE;
        }
    }
    workgroupBarrier();

    // Softmax of each head by 16 threads.
    let head = thread / 16u;
    let lane = thread % 16u;
    var row_max = UNSEEN;
    if (head < HEADS_PER_ITEM) {
        for (var key = lane; key < keys; key += 16u) {
            row_max = max(row_max, scores[head * DECODE_KEYS + key]);
        }
    }
    sixteenths[thread] = row_max;
    workgroupBarrier();
    for (var other = 0u; other < 16u; other += 1u) {
        row_max = max(row_max, sixteenths[head * 16u + other]);
    }
    workgroupBarrier();
    var row_sum = 0.0;
    if (head < HEADS_PER_ITEM) {
        for (var key = lane; key < keys; key += 16u) {
            let weight = exp(scores[head * DECODE_KEYS + key] - row_max);
            scores[head * DECODE_KEYS + key] = weight;
            row_sum += weight;
        }
    }
    sixteenths[thread] = row_sum;
    workgroupBarrier();
    if (head < HEADS_PER_ITEM && lane == 0u) {
        row_sum = 0.0;
        for (var other = 0u; other < 16u; other += 1u) {
            row_sum += sixteenths[head * 16u + other];
        }
        let at = (group.x * HEADS_PER_ITEM + head) * PARTIAL + HEAD_DIM;
        partials[at] = row_max;
        partials[at + 1u] = row_sum;
    }

    let pair = thread % PAIRS;
    let key_lane = thread / PAIRS;
    var sums: array<vec2<f32>, HEADS_PER_ITEM>;
    if (key_lane < LANES) {
        for (var key = key_lane; key < keys; key += LANES) {
            let value = unpack2x16float(v_ring[key_rows[key] * PAIRS + pair]);
            for (var served = 0u; served < HEADS_PER_ITEM; served += 1u) {
                sums[served] += scores[served * DECODE_KEYS + key] * value;
            }
        }
    }
    workgroupBarrier();
    if (key_lane < LANES) {
        for (var served = 0u; served < HEADS_PER_ITEM; served += 1u) {
            let at = (key_lane * HEADS_PER_ITEM + served) * HEAD_DIM + 2u * pair;
            scores[at] = sums[served].x;
            scores[at + 1u] = sums[served].y;
        }
    }
    workgroupBarrier();
    for (var index = thread; index < HEADS_PER_ITEM * HEAD_DIM; index += THREADS) {
        var sum = 0.0;
        for (var other = 0u; other < LANES; other += 1u) {
            sum += scores[other * HEADS_PER_ITEM * HEAD_DIM + index];
        }
        partials[(group.x * HEADS_PER_ITEM + index / HEAD_DIM) * PARTIAL + index % HEAD_DIM] = sum;
    }
}
