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
@group(0) @binding(4) var<storage, read> v_ring: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> spans: array<HeadSpan>;
@group(0) @binding(6) var<storage, read> items: array<DecodeItem>;
@group(0) @binding(7) var<storage, read_write> partials: array<f32>;

const THREADS: u32 = 128u;
const HEAD_DIM4: u32 = HEAD_DIM / 4u;
const HEAD_DIM8: u32 = HEAD_DIM / 8u;
const PARTIAL: u32 = HEAD_DIM + 2u;
// In the weighted sum of V a thread holds eight channels; the threads beyond take other keys.
const LANES: u32 = THREADS / HEAD_DIM8;
// The lanes' sums of one head, [channel of eight][thread], and how many heads of them fit beside each other.
const HEAD_SUMS: u32 = 8u * THREADS;
const SCRATCH: u32 = max(2u * HEADS_PER_ITEM * DECODE_KEYS, HEAD_SUMS);
const HEADS_PER_ROUND: u32 = SCRATCH / HEAD_SUMS;

var<workgroup> queries: array<vec4<f32>, HEADS_PER_ITEM * HEAD_DIM4>;
// Halves of scores [head][half][key], then weights in the place of the first half, then the lanes' sums of some heads.
var<workgroup> scores: array<f32, SCRATCH>;
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
    if (keys == 0u) {
        // Nobody reads the sum of a part without keys.
        if (thread < HEADS_PER_ITEM) {
            let at = (group.x * HEADS_PER_ITEM + thread) * PARTIAL + HEAD_DIM;
            partials[at] = UNSEEN;
            partials[at + 1u] = 0.0;
        }
        return;
    }
    for (var index = thread; index < HEADS_PER_ITEM * HEAD_DIM4; index += THREADS) {
        queries[index] = q[item.first_head * HEAD_DIM4 + index];
    }
    for (var key = thread; key < keys; key += THREADS) {
        let nth = first + key;
        let k_pos = select(local_start + (nth - sink_end), nth, nth < sink_end);
        key_rows[key] = ring_row(span, k_pos);
    }
    workgroupBarrier();

    // Two threads a key, each with every other eight channels: together they read whole sectors of memory.
    let half = thread % 2u;
    for (var key = thread / 2u; key < keys; key += THREADS / 2u) {
        let at = key_rows[key] * HEAD_DIM8;
        // Browsers set an array without an initializer to zero once, not in every round of a loop.
        var sums = array<f32, HEADS_PER_ITEM>();
        for (var channel8 = half; channel8 < HEAD_DIM8; channel8 += 2u) {
            let words = k_ring[at + channel8];
            for (var head = 0u; head < HEADS_PER_ITEM; head += 1u) {
                sums[head] += dot8(words, head, channel8);
            }
        }
        for (var head = 0u; head < HEADS_PER_ITEM; head += 1u) {
            scores[(2u * head + half) * DECODE_KEYS + key] = sums[head] * SOFTMAX_SCALE;
        }
    }
    workgroupBarrier();

    // Softmax of each head by 16 threads.
    let head = thread / 16u;
    let lane = thread % 16u;
    var row_max = UNSEEN;
    if (head < HEADS_PER_ITEM) {
        for (var key = lane; key < keys; key += 16u) {
            let at = 2u * head * DECODE_KEYS + key;
            let score = scores[at] + scores[at + DECODE_KEYS];
            scores[at] = score;
            row_max = max(row_max, score);
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
            let weight = exp(scores[2u * head * DECODE_KEYS + key] - row_max);
            scores[2u * head * DECODE_KEYS + key] = weight;
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

    let channel8 = thread % HEAD_DIM8;
    let key_lane = thread / HEAD_DIM8;
    var low = array<vec4<f32>, HEADS_PER_ITEM>();
    var high = array<vec4<f32>, HEADS_PER_ITEM>();
    if (key_lane < LANES) {
        // Two keys at a time, so that two are on their way at once; past the end the last one again, without weight.
        for (var key = key_lane; key < keys; key += 2u * LANES) {
            let has_other = key + LANES < keys;
            let other = select(key, key + LANES, has_other);
            let words = v_ring[key_rows[key] * HEAD_DIM8 + channel8];
            let other_words = v_ring[key_rows[other] * HEAD_DIM8 + channel8];
            let value_low = vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
            let value_high = vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w));
            let other_low = vec4<f32>(unpack2x16float(other_words.x), unpack2x16float(other_words.y));
            let other_high = vec4<f32>(unpack2x16float(other_words.z), unpack2x16float(other_words.w));
            for (var served = 0u; served < HEADS_PER_ITEM; served += 1u) {
                let weight = scores[2u * served * DECODE_KEYS + key];
                let other_weight = select(0.0, scores[2u * served * DECODE_KEYS + other], has_other);
                low[served] += weight * value_low + other_weight * other_low;
                high[served] += weight * value_high + other_weight * other_high;
            }
        }
    }
    for (var round = 0u; round < HEADS_PER_ITEM; round += HEADS_PER_ROUND) {
        workgroupBarrier();
        for (var index = 0u; index < HEADS_PER_ROUND; index += 1u) {
            let served = round + index;
            if (served < HEADS_PER_ITEM && key_lane < LANES) {
                let at = index * HEAD_SUMS + thread;
                scores[at] = low[served].x;
                scores[at + THREADS] = low[served].y;
                scores[at + 2u * THREADS] = low[served].z;
                scores[at + 3u * THREADS] = low[served].w;
                scores[at + 4u * THREADS] = high[served].x;
                scores[at + 5u * THREADS] = high[served].y;
                scores[at + 6u * THREADS] = high[served].z;
                scores[at + 7u * THREADS] = high[served].w;
            }
        }
        workgroupBarrier();
        for (var index = thread; index < HEADS_PER_ROUND * HEAD_DIM; index += THREADS) {
            let served = round + index / HEAD_DIM;
            let channel = index % HEAD_DIM;
            if (served < HEADS_PER_ITEM) {
                let at = (index / HEAD_DIM) * HEAD_SUMS + (channel % 8u) * THREADS + channel / 8u;
                var sum = 0.0;
                for (var other = 0u; other < LANES; other += 1u) {
                    sum += scores[at + other * HEAD_DIM8];
                }
                partials[(group.x * HEADS_PER_ITEM + served) * PARTIAL + channel] = sum;
            }
        }
    }
}
