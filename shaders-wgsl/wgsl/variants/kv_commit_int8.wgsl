// Copies a chunk's keys and values from the scratch into a cache of bytes: kv_commit, with rounding on the way. In
// decode the chunk is the one token in flight.
//
// k_chunk, v_chunk  [len][kv_heads] rows of f16
// k_ring, v_ring  rows by ring_row: an f32 scale and head_dim signed bytes; the largest magnitude becomes 127
// Grid: (kv_heads, len); a workgroup of 64 has a row of K and one of V, a thread four channels of either.
// Numerics: value * (127 / largest), to the nearest, ties to even. Twin: reference/src/qkv_rows.rs, to_bytes.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> spans: array<HeadSpan>;
@group(0) @binding(3) var<storage, read> k_chunk: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> v_chunk: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> k_ring: array<u32>;
@group(0) @binding(6) var<storage, read_write> v_ring: array<u32>;

const HEAD_DIM4: u32 = HEAD_DIM / 4u;
const ROW_WORDS: u32 = HEAD_DIM4 + 1u;

// The largest magnitudes of each thread's channels, K and V.
var<workgroup> tops: array<vec2<f32>, 64>;

fn unpack(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn largest(value: vec4<f32>) -> f32 {
    let size = abs(value);
    return max(max(size.x, size.y), max(size.z, size.w));
}

fn to_bytes(value: vec4<f32>, inverse: f32) -> u32 {
    return packed(rounded(clamp(value * inverse, vec4<f32>(-127.0), vec4<f32>(127.0))));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.y;
    let kv_head = group.x;
    let span = spans[kv_head];
    let position = state.start + token;
    // A later token of this chunk takes the slot.
    if (token >= state.len || (position >= span.sink && state.len - token > span.ring)) {
        return;
    }
    let from_row = (token * KV_HEADS + kv_head) * HEAD_DIM4;
    var k = vec4<f32>(0.0);
    var v = vec4<f32>(0.0);
    if (thread < HEAD_DIM4) {
        k = unpack(k_chunk[from_row + thread]);
        v = unpack(v_chunk[from_row + thread]);
    }
    tops[thread] = vec2<f32>(largest(k), largest(v));
    workgroupBarrier();
    var top = tops[0];
    for (var other = 1u; other < HEAD_DIM4; other += 1u) {
        top = max(top, tops[other]);
    }
    let at = ring_row(span, position) * ROW_WORDS;
    if (thread < HEAD_DIM4) {
        let inverse = select(vec2<f32>(0.0), vec2<f32>(127.0) / top, top > vec2<f32>(0.0));
        k_ring[at + 1u + thread] = to_bytes(k, inverse.x);
        v_ring[at + 1u + thread] = to_bytes(v, inverse.y);
    }
    if (thread == 0u) {
        k_ring[at] = bitcast<u32>(top.x / 127.0);
        v_ring[at] = bitcast<u32>(top.y / 127.0);
    }
}
