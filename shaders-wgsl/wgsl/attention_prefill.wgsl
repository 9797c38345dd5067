// Attention of a chunk's queries over the cache as it was before the chunk and over the chunk's own K and V.
//
// q  [len][heads][head_dim] f32, rotated               y  [len][heads][head_dim] f32
// k_ring, v_ring  rows by ring_row: positions below state.start
// k_chunk, v_chunk  [len][kv_heads] rows of f16: positions from state.start on
// Grid: (ceil(len * gqa_group / 32), kv_heads); a workgroup of 128 serves 32 rows, a row being one query head of
// the group at one position, so that K and V are loaded once for the whole group. Tiles of 32 keys: first the
// sink's, then those from the first row's window to the last row's position; nothing else is loaded. Tiles go through
// workgroup memory 32 channels at a time, and the next 32 are on their way meanwhile. Only edge tiles test the
// predicate, and there a key that a row does not see is left out of its sums whatever it holds.
// Numerics: online softmax in f32, the maximum subtracted. Twin: reference/src/attention_prefill.rs.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> k_chunk: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read> v_chunk: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read> spans: array<HeadSpan>;
@group(0) @binding(8) var<storage, read_write> y: array<vec4<f32>>;

const TILE_Q: u32 = 32u;
const TILE_K: u32 = 32u;
const HEAD_DIM4: u32 = HEAD_DIM / 4u;
// A slice is 8 vectors of channels: what sits in workgroup memory at a time.
const SLICE: u32 = 8u;
const SLICES: u32 = (HEAD_DIM4 + SLICE - 1u) / SLICE;

var<workgroup> tile_q: array<vec4<f32>, 256>; // [channel][row ^ channel]
var<workgroup> tile_kv: array<vec4<f32>, 256>; // K: [channel][key % 4][key / 4 ^ channel]; V: [key][channel]
var<workgroup> weights: array<vec4<f32>, 256>; // [row][key / 4]
var<workgroup> lane_values: array<f32, 256>; // [row][lane]

// The keys that a workgroup's rows see, and how they are cut into tiles.
struct Tiles {
    span: HeadSpan,
    kv_head: u32,
    sink_end: u32,
    sink_tiles: u32,
    local_start: u32,
    local_end: u32,
}

fn tile_start(tiles: Tiles, tile: u32) -> u32 {
    let in_sink = tile < tiles.sink_tiles;
    return select(tiles.local_start + (tile - tiles.sink_tiles) * TILE_K, tile * TILE_K, in_sink);
}

fn tile_end(tiles: Tiles, tile: u32) -> u32 {
    let end = select(tiles.local_end, tiles.sink_end, tile < tiles.sink_tiles);
    return min(tile_start(tiles, tile) + TILE_K, end);
}

fn unpack(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

// Four channels of a key's K; nothing where the tile has no such key.
fn load_k(tiles: Tiles, tile: u32, line: u32, channel4: u32) -> vec4<f32> {
    let k_pos = tile_start(tiles, tile) + line;
    if (k_pos >= tile_end(tiles, tile) || channel4 >= HEAD_DIM4) {
        return vec4<f32>(0.0);
    }
    if (k_pos >= state.start) {
        return unpack(k_chunk[((k_pos - state.start) * KV_HEADS + tiles.kv_head) * HEAD_DIM4 + channel4]);
    }
    return ring_k(ring_row(tiles.span, k_pos), channel4);
}

// The same of its V.
fn load_v(tiles: Tiles, tile: u32, line: u32, channel4: u32) -> vec4<f32> {
    let k_pos = tile_start(tiles, tile) + line;
    if (k_pos >= tile_end(tiles, tile) || channel4 >= HEAD_DIM4) {
        return vec4<f32>(0.0);
    }
    if (k_pos >= state.start) {
        return unpack(v_chunk[((k_pos - state.start) * KV_HEADS + tiles.kv_head) * HEAD_DIM4 + channel4]);
    }
    return ring_v(ring_row(tiles.span, k_pos), channel4);
}

// Four channels of a row's query; rows past the end repeat the last one.
fn load_q(kv_head: u32, row: u32, rows: u32, channel4: u32) -> vec4<f32> {
    if (channel4 >= HEAD_DIM4) {
        return vec4<f32>(0.0);
    }
    let own = min(row, rows - 1u);
    let q_row = (own / GQA_GROUP) * HEADS + kv_head * GQA_GROUP + own % GQA_GROUP;
    return q[q_row * HEAD_DIM4 + channel4];
}

fn largest(value: vec4<f32>) -> f32 {
    return max(max(value.x, value.y), max(value.z, value.w));
}

// Adds four weighted values; where a weight is zero, whatever the value.
fn add_seen(sum: vec4<f32>, values: mat4x4<f32>, weight: vec4<f32>) -> vec4<f32> {
    return sum + select(vec4<f32>(0.0), values[0] * weight.x, weight.x != 0.0)
        + select(vec4<f32>(0.0), values[1] * weight.y, weight.y != 0.0)
        + select(vec4<f32>(0.0), values[2] * weight.z, weight.z != 0.0)
        + select(vec4<f32>(0.0), values[3] * weight.w, weight.w != 0.0);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let kv_head = group.y;
    let span = spans[kv_head];
    let rows = state.len * GQA_GROUP;
    let first_row = group.x * TILE_Q;
    if (first_row >= rows) {
        return;
    }
    let q_first = state.start + first_row / GQA_GROUP;
    let q_last = state.start + (min(first_row + TILE_Q, rows) - 1u) / GQA_GROUP;
    let sink_end = min(span.sink, q_last + 1u);
    let local_start = window_start(span, q_first);
    let local_end = max(q_last + 1u, local_start);
    // From here on every row sees every local key up to q_first.
    let inner_start = window_start(span, q_last);
    let sink_tiles = (sink_end + TILE_K - 1u) / TILE_K;
    let tiles = Tiles(span, kv_head, sink_end, sink_tiles, local_start, local_end);
    let tile_count = sink_tiles + (local_end - local_start + TILE_K - 1u) / TILE_K;

    // This thread's rows are lane_row and lane_row + 16, its keys of a tile 4 * lane .. 4 * lane + 3. On the way in it has
    // the vector lane of lines lane_row and lane_row + 16.
    let lane_row = thread / 8u;
    let lane = thread % 8u;
    let slot_q = lane * TILE_Q + (lane_row ^ lane);
    let slot_k = lane * TILE_K + (lane_row % 4u) * 8u + ((lane_row / 4u) ^ lane);
    let slot_k_next = lane * TILE_K + (lane_row % 4u) * 8u + ((lane_row / 4u + 4u) ^ lane);
    let pos_0 = state.start + min(first_row + lane_row, rows - 1u) / GQA_GROUP;
    let pos_1 = state.start + min(first_row + lane_row + 16u, rows - 1u) / GQA_GROUP;
    var max_0 = UNSEEN;
    var max_1 = UNSEEN;
    var sum_0 = 0.0;
    var sum_1 = 0.0;
    var sums_0: array<vec4<f32>, SLICES>;
    var sums_1: array<vec4<f32>, SLICES>;

    var q_0 = load_q(kv_head, first_row + lane_row, rows, lane);
    var q_1 = load_q(kv_head, first_row + lane_row + 16u, rows, lane);
    var kv_0 = load_k(tiles, 0u, lane_row, lane);
    var kv_1 = load_k(tiles, 0u, lane_row + 16u, lane);
    for (var tile = 0u; tile < tile_count; tile += 1u) {
        let in_sink = tile < sink_tiles;
        let k_first = tile_start(tiles, tile);
        let k_end = tile_end(tiles, tile);
        let whole = k_end - k_first == TILE_K && k_end <= q_first + 1u && (in_sink || k_first >= inner_start);

        var score_0 = vec4<f32>(0.0);
        var score_1 = vec4<f32>(0.0);
        for (var slice = 0u; slice < SLICES; slice += 1u) {
            workgroupBarrier();
            tile_q[slot_q] = q_0;
            tile_q[slot_q ^ 16u] = q_1;
            tile_kv[slot_k] = kv_0;
            tile_kv[slot_k_next] = kv_1;
            workgroupBarrier();
            let next = (slice + 1u) % SLICES;
            q_0 = load_q(kv_head, first_row + lane_row, rows, next * SLICE + lane);
            q_1 = load_q(kv_head, first_row + lane_row + 16u, rows, next * SLICE + lane);
            if (slice + 1u < SLICES) {
                kv_0 = load_k(tiles, tile, lane_row, next * SLICE + lane);
                kv_1 = load_k(tiles, tile, lane_row + 16u, next * SLICE + lane);
            } else {
                kv_0 = load_v(tiles, tile, lane_row, lane);
                kv_1 = load_v(tiles, tile, lane_row + 16u, lane);
            }
            for (var channel = 0u; channel < SLICE; channel += 1u) {
                let at_q = channel * TILE_Q + (lane_row ^ channel);
                let at_k = channel * TILE_K + (lane ^ channel);
                let keys = mat4x4<f32>(tile_kv[at_k], tile_kv[at_k + 8u], tile_kv[at_k + 16u], tile_kv[at_k + 24u]);
                score_0 += tile_q[at_q] * keys;
                score_1 += tile_q[at_q ^ 16u] * keys;
            }
        }

        let k_pos = vec4<u32>(k_first + 4u * lane) + vec4<u32>(0u, 1u, 2u, 3u);
        var seen_0 = vec4<bool>(true);
        var seen_1 = vec4<bool>(true);
        if (!whole) {
            let there = k_pos < vec4<u32>(k_end);
            seen_0 = attends(span, pos_0, k_pos) & there;
            seen_1 = attends(span, pos_1, k_pos) & there;
        }
        score_0 = select(vec4<f32>(UNSEEN), score_0 * SOFTMAX_SCALE, seen_0);
        score_1 = select(vec4<f32>(UNSEEN), score_1 * SOFTMAX_SCALE, seen_1);
        lane_values[lane_row * 8u + lane] = largest(score_0);
        lane_values[(lane_row + 16u) * 8u + lane] = largest(score_1);
        workgroupBarrier();
        var new_0 = max_0;
        var new_1 = max_1;
        for (var other = 0u; other < 8u; other += 1u) {
            new_0 = max(new_0, lane_values[lane_row * 8u + other]);
            new_1 = max(new_1, lane_values[(lane_row + 16u) * 8u + other]);
        }
        let shrink_0 = exp(max_0 - new_0);
        let shrink_1 = exp(max_1 - new_1);
        let weight_0 = select(vec4<f32>(0.0), exp(score_0 - vec4<f32>(new_0)), seen_0);
        let weight_1 = select(vec4<f32>(0.0), exp(score_1 - vec4<f32>(new_1)), seen_1);
        max_0 = new_0;
        max_1 = new_1;
        sum_0 = sum_0 * shrink_0 + dot(weight_0, vec4<f32>(1.0));
        sum_1 = sum_1 * shrink_1 + dot(weight_1, vec4<f32>(1.0));
        weights[lane_row * 8u + lane] = weight_0;
        weights[(lane_row + 16u) * 8u + lane] = weight_1;

        for (var slice = 0u; slice < SLICES; slice += 1u) {
            workgroupBarrier();
            tile_kv[thread] = kv_0;
            tile_kv[thread + 128u] = kv_1;
            workgroupBarrier();
            if (slice + 1u < SLICES) {
                kv_0 = load_v(tiles, tile, lane_row, (slice + 1u) * SLICE + lane);
                kv_1 = load_v(tiles, tile, lane_row + 16u, (slice + 1u) * SLICE + lane);
            } else if (tile + 1u < tile_count) {
                kv_0 = load_k(tiles, tile + 1u, lane_row, lane);
                kv_1 = load_k(tiles, tile + 1u, lane_row + 16u, lane);
            }
            var own_0 = sums_0[slice] * shrink_0;
            var own_1 = sums_1[slice] * shrink_1;
            for (var key4 = 0u; key4 < 8u; key4 += 1u) {
                let at_v = key4 * 4u * SLICE + lane;
                let values = mat4x4<f32>(
                    tile_kv[at_v],
                    tile_kv[at_v + SLICE],
                    tile_kv[at_v + 2u * SLICE],
                    tile_kv[at_v + 3u * SLICE],
                );
                let by_0 = weights[lane_row * 8u + key4];
                let by_1 = weights[(lane_row + 16u) * 8u + key4];
                if (whole) {
                    own_0 += values * by_0;
                    own_1 += values * by_1;
                } else {
                    own_0 = add_seen(own_0, values, by_0);
                    own_1 = add_seen(own_1, values, by_1);
                }
            }
            sums_0[slice] = own_0;
            sums_1[slice] = own_1;
        }
    }

    workgroupBarrier();
    lane_values[lane_row * 8u + lane] = sum_0;
    lane_values[(lane_row + 16u) * 8u + lane] = sum_1;
    workgroupBarrier();
    for (var index = 0u; index < 2u; index += 1u) {
        let line = lane_row + 16u * index;
        let row = first_row + line;
        if (row < rows) {
            var total = 0.0;
            for (var other = 0u; other < 8u; other += 1u) {
                total += lane_values[line * 8u + other];
            }
            let y_row = (row / GQA_GROUP) * HEADS + kv_head * GQA_GROUP + row % GQA_GROUP;
            for (var slice = 0u; slice < SLICES; slice += 1u) {
                let channel4 = slice * SLICE + lane;
                if (channel4 < HEAD_DIM4) {
                    y[y_row * HEAD_DIM4 + channel4] = select(sums_1[slice], sums_0[slice], index == 0u) / total;
                }
            }
        }
    }
}
