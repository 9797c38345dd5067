// Copies a prefill chunk's keys and values from the scratch into the cache: those of the sink, and the last
// min(chunk, ring) of the others, so that each slot has one writer. Runs after the chunk's attention.
//
// k_chunk, v_chunk  [len][kv_heads] rows of f16            k_ring, v_ring  rows of f16, by ring_row
// Grid: (ceil(kv_heads * head_dim / 4 / 64), len); a thread copies four channels of K and of V.
// Numerics: a copy. Twin: reference/src/kv_commit.rs.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> spans: array<HeadSpan>;
@group(0) @binding(3) var<storage, read> k_chunk: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> v_chunk: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> k_ring: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> v_ring: array<vec2<u32>>;

const HEAD_DIM4: u32 = HEAD_DIM / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (token >= state.len || id.x >= KV_HEADS * HEAD_DIM4) {
        return;
    }
    let kv_head = id.x / HEAD_DIM4;
    let part = id.x % HEAD_DIM4;
    let span = spans[kv_head];
    let position = state.start + token;
    let to_come = state.len - token;
    // A later token of this chunk takes the slot.
    if (position >= span.sink && to_come > span.ring) {
        return;
    }
    let from_row = (token * KV_HEADS + kv_head) * HEAD_DIM4 + part;
    let to_row = ring_row(span, position) * HEAD_DIM4 + part;
    k_ring[to_row] = k_chunk[from_row];
    v_ring[to_row] = v_chunk[from_row];
}
