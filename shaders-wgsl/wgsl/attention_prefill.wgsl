// Attention of a chunk's queries over the cache as it was before the chunk and over the chunk's own K and V.
//
// q  [len][heads][head_dim] f32, rotated               y  [len][heads][head_dim] f32
// k_ring, v_ring  rows of f16 by ring_row: positions below state.start
// k_chunk, v_chunk  [len][kv_heads] rows of f16: positions from state.start on
// Grid: (ceil(len * gqa_group / 32), kv_heads); a workgroup of 64 serves 32 rows, a row being one query head of
// the group at one position, so that K and V are loaded once for the whole group. Tiles of 32 keys: first the
// sink's, then those from the first row's window to the last row's position; nothing else is loaded. Only edge
// tiles test the predicate, and there a key that a row does not see is left out of its sums whatever it holds.
// Numerics: online softmax in f32, the maximum subtracted. Twin: reference/src/attention_prefill.rs.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> k_ring: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> v_ring: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> k_chunk: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read> v_chunk: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read> spans: array<HeadSpan>;
@group(0) @binding(8) var<storage, read_write> y: array<vec4<f32>>;

const TILE_Q: u32 = 32u;
const TILE_K: u32 = 32u;
const THREADS: u32 = 64u;
const HEAD_DIM4: u32 = HEAD_DIM / 4u;
// A slice is 8 vectors of channels: what sits in workgroup memory at a time.
const SLICE: u32 = 8u;
const SLICES: u32 = (HEAD_DIM4 + SLICE - 1u) / SLICE;
const ROWS_PER_THREAD: u32 = 4u;

const NO_KEY: u32 = 0xffffffffu;
const IN_CHUNK: u32 = 0x80000000u;

var<workgroup> tile_q: array<vec4<f32>, 256>; // [channel][row]
var<workgroup> tile_kv: array<vec4<f32>, 256>; // K: [channel][key % 4][key / 4]; V: [key][channel]
var<workgroup> weights: array<vec4<f32>, 256>; // [row][key / 4]
var<workgroup> lane_values: array<f32, 256>; // [row][lane]
var<workgroup> key_rows: array<u32, 32>;

fn unpack(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn load_k(key_row: u32, channel4: u32) -> vec4<f32> {
    if (key_row == NO_KEY || channel4 >= HEAD_DIM4) {
        return vec4<f32>(0.0);
    }
    if ((key_row & IN_CHUNK) != 0u) {
        return unpack(k_chunk[(key_row ^ IN_CHUNK) * HEAD_DIM4 + channel4]);
    }
    return unpack(k_ring[key_row * HEAD_DIM4 + channel4]);
}

fn load_v(key_row: u32, channel4: u32) -> vec4<f32> {
    if (key_row == NO_KEY || channel4 >= HEAD_DIM4) {
        return vec4<f32>(0.0);
    }
    if ((key_row & IN_CHUNK) != 0u) {
        return unpack(v_chunk[(key_row ^ IN_CHUNK) * HEAD_DIM4 + channel4]);
    }
    return unpack(v_ring[key_row * HEAD_DIM4 + channel4]);
}

fn largest(value: vec4<f32>) -> f32 {
    return max(max(value.x, value.y), max(value.z, value.w));
}

@compute @workgroup_size(64)
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
    let tiles = sink_tiles + (local_end - local_start + TILE_K - 1u) / TILE_K;

    // This thread's rows are lane_row + 8 * index, its keys of a tile 4 * lane .. 4 * lane + 3.
    let lane_row = thread / 8u;
    let lane = thread % 8u;
    var q_pos: vec4<u32>;
    for (var index = 0u; index < ROWS_PER_THREAD; index += 1u) {
        // Rows past the end repeat the last one and are not stored.
        q_pos[index] = state.start + min(first_row + lane_row + 8u * index, rows - 1u) / GQA_GROUP;
    }
    var row_max = vec4<f32>(UNSEEN);
    var row_sum = vec4<f32>(0.0);
    var sums: array<vec4<f32>, SLICES * ROWS_PER_THREAD>;

    for (var tile = 0u; tile < tiles; tile += 1u) {
        let in_sink = tile < sink_tiles;
        let k_first = select(local_start + (tile - sink_tiles) * TILE_K, tile * TILE_K, in_sink);
        let k_end = min(k_first + TILE_K, select(local_end, sink_end, in_sink));
        let whole = k_end - k_first == TILE_K && k_end <= q_first + 1u && (in_sink || k_first >= inner_start);
        if (thread < TILE_K) {
            let k_pos = k_first + thread;
            var key_row = NO_KEY;
            if (k_pos < k_end) {
                if (k_pos >= state.start) {
                    key_row = IN_CHUNK | ((k_pos - state.start) * KV_HEADS + kv_head);
                } else {
                    key_row = ring_row(span, k_pos);
                }
            }
            key_rows[thread] = key_row;
        }

        // Browsers set an array without an initializer to zero once, not in every round of a loop.
        var scores = array<vec4<f32>, ROWS_PER_THREAD>();
        for (var slice = 0u; slice < SLICES; slice += 1u) {
            workgroupBarrier();
            for (var index = thread; index < TILE_Q * SLICE; index += THREADS) {
                let line = index / SLICE;
                let channel = index % SLICE;
                let channel4 = slice * SLICE + channel;
                let row = min(first_row + line, rows - 1u);
                let q_row = (row / GQA_GROUP) * HEADS + kv_head * GQA_GROUP + row % GQA_GROUP;
                var value = vec4<f32>(0.0);
                if (channel4 < HEAD_DIM4) {
                    value = q[q_row * HEAD_DIM4 + channel4];
                }
                tile_q[channel * TILE_Q + line] = value;
                tile_kv[channel * TILE_K + (line % 4u) * 8u + line / 4u] = load_k(key_rows[line], channel4);
            }
            workgroupBarrier();
            for (var channel = 0u; channel < SLICE; channel += 1u) {
                let at_q = channel * TILE_Q + lane_row;
                let at_k = channel * TILE_K + lane;
                let keys = mat4x4<f32>(tile_kv[at_k], tile_kv[at_k + 8u], tile_kv[at_k + 16u], tile_kv[at_k + 24u]);
                scores[0] += tile_q[at_q] * keys;
                scores[1] += tile_q[at_q + 8u] * keys;
                scores[2] += tile_q[at_q + 16u] * keys;
                scores[3] += tile_q[at_q + 24u] * keys;
            }
        }

        let k_pos = vec4<u32>(k_first + 4u * lane) + vec4<u32>(0u, 1u, 2u, 3u);
        var seen: array<vec4<bool>, ROWS_PER_THREAD>;
        for (var index = 0u; index < ROWS_PER_THREAD; index += 1u) {
            seen[index] = vec4<bool>(true);
            if (!whole) {
                seen[index] = attends(span, q_pos[index], k_pos) & (k_pos < vec4<u32>(k_end));
            }
            scores[index] = select(vec4<f32>(UNSEEN), scores[index] * SOFTMAX_SCALE, seen[index]);
            lane_values[(lane_row + 8u * index) * 8u + lane] = largest(scores[index]);
        }
        workgroupBarrier();
        for (var index = 0u; index < ROWS_PER_THREAD; index += 1u) {
            let row = lane_row + 8u * index;
            var new_max = row_max[index];
            for (var other = 0u; other < 8u; other += 1u) {
                new_max = max(new_max, lane_values[row * 8u + other]);
            }
            let shrink = exp(row_max[index] - new_max);
            let weight = select(vec4<f32>(0.0), exp(scores[index] - vec4<f32>(new_max)), seen[index]);
            row_max[index] = new_max;
            row_sum[index] = row_sum[index] * shrink + dot(weight, vec4<f32>(1.0));
            weights[row * 8u + lane] = weight;
            for (var slice = 0u; slice < SLICES; slice += 1u) {
                sums[slice * ROWS_PER_THREAD + index] *= shrink;
            }
        }

        for (var slice = 0u; slice < SLICES; slice += 1u) {
            workgroupBarrier();
            for (var index = thread; index < TILE_K * SLICE; index += THREADS) {
                tile_kv[index] = load_v(key_rows[index / SLICE], slice * SLICE + index % SLICE);
            }
            workgroupBarrier();
            for (var key4 = 0u; key4 < 8u; key4 += 1u) {
                let at_v = key4 * 4u * SLICE + lane;
                let values = mat4x4<f32>(
                    tile_kv[at_v],
                    tile_kv[at_v + SLICE],
                    tile_kv[at_v + 2u * SLICE],
                    tile_kv[at_v + 3u * SLICE],
                );
                for (var index = 0u; index < ROWS_PER_THREAD; index += 1u) {
                    let weight = weights[(lane_row + 8u * index) * 8u + key4];
                    var sum = sums[slice * ROWS_PER_THREAD + index];
                    if (whole) {
                        sum += values * weight;
                    } else {
                        sum += select(vec4<f32>(0.0), values[0] * weight.x, weight.x != 0.0);
                        sum += select(vec4<f32>(0.0), values[1] * weight.y, weight.y != 0.0);
                        sum += select(vec4<f32>(0.0), values[2] * weight.z, weight.z != 0.0);
                        sum += select(vec4<f32>(0.0), values[3] * weight.w, weight.w != 0.0);
                    }
                    sums[slice * ROWS_PER_THREAD + index] = sum;
                }
            }
        }
    }

    workgroupBarrier();
    for (var index = 0u; index < ROWS_PER_THREAD; index += 1u) {
        lane_values[(lane_row + 8u * index) * 8u + lane] = row_sum[index];
    }
    workgroupBarrier();
    for (var index = 0u; index < ROWS_PER_THREAD; index += 1u) {
        let line = lane_row + 8u * index;
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
                    y[y_row * HEAD_DIM4 + channel4] = sums[slice * ROWS_PER_THREAD + index] / total;
                }
            }
        }
    }
}
