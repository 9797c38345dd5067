// Rotates queries in place and keys on their way into the cache; values go along unrotated. Channel c of a head
// pairs with c + head_dim / 2 (Hugging Face's convention). K and V are stored as f16, two to a u32.
//
// q  [len][heads][head_dim] f32, in place            k, v  [len][kv_heads][head_dim] f32
// table  [context][head_dim / 2] (cos, sin), computed on the host in f64
// k_out, v_out  rows of head_dim / 2 u32; kv_row says which: the chunk scratch in prefill, the ring in decode
// Grid: (ceil((heads + 2 * kv_heads) * head_dim / 4 / 64), len); a thread handles four channels of one head.
// Numerics: f32, K and V rounded to f16 once, clamped to its range. Twin: reference/src/rope.rs, kv_write.rs.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read_write> q: array<f32>;
@group(0) @binding(3) var<storage, read> k: array<f32>;
@group(0) @binding(4) var<storage, read> v: array<f32>;
@group(0) @binding(5) var<storage, read> table: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> k_out: array<u32>;
@group(0) @binding(7) var<storage, read_write> v_out: array<u32>;

const HALF: u32 = HEAD_DIM / 2u;
const UNITS_PER_HEAD: u32 = HEAD_DIM / 4u;
const UNITS: u32 = (HEADS + 2u * KV_HEADS) * UNITS_PER_HEAD;

fn pack(a: f32, b: f32) -> u32 {
    return pack2x16float(clamp(vec2<f32>(a, b), vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (token >= state.len || id.x >= UNITS) {
        return;
    }
    let position = state.start + token;
    let head = id.x / UNITS_PER_HEAD;
    let channel = (id.x % UNITS_PER_HEAD) * 2u;
    // Two neighboring pairs: (channel, channel + HALF) and (channel + 1, channel + 1 + HALF).
    let turn_a = table[position * HALF + channel];
    let turn_b = table[position * HALF + channel + 1u];
    if (head < HEADS) {
        let at = (token * HEADS + head) * HEAD_DIM + channel;
        let low_a = q[at];
        let low_b = q[at + 1u];
        let high_a = q[at + HALF];
        let high_b = q[at + HALF + 1u];
        q[at] = low_a * turn_a.x - high_a * turn_a.y;
        q[at + 1u] = low_b * turn_b.x - high_b * turn_b.y;
        q[at + HALF] = high_a * turn_a.x + low_a * turn_a.y;
        q[at + HALF + 1u] = high_b * turn_b.x + low_b * turn_b.y;
    } else if (head < HEADS + KV_HEADS) {
        let kv_head = head - HEADS;
        let at = (token * KV_HEADS + kv_head) * HEAD_DIM + channel;
        let low_a = k[at];
        let low_b = k[at + 1u];
        let high_a = k[at + HALF];
        let high_b = k[at + HALF + 1u];
        let word = kv_row(kv_head, token, position) * HALF + channel / 2u;
        k_out[word] = pack(low_a * turn_a.x - high_a * turn_a.y, low_b * turn_b.x - high_b * turn_b.y);
        k_out[word + HALF / 2u] = pack(high_a * turn_a.x + low_a * turn_a.y, high_b * turn_b.x + low_b * turn_b.y);
    } else {
        let kv_head = head - HEADS - KV_HEADS;
        let at = (token * KV_HEADS + kv_head) * HEAD_DIM + channel;
        let word = kv_row(kv_head, token, position) * HALF + channel / 2u;
        v_out[word] = pack(v[at], v[at + 1u]);
        v_out[word + HALF / 2u] = pack(v[at + HALF], v[at + HALF + 1u]);
    }
}
