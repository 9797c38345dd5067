// The token in flight through the layer's first half up to attention: norm, query, key and value projections with
// their biases, rotation, and K and V into the ring. Channel c of a head pairs with c + head_dim / 2.
//
// x  [cols] f32 or codes        values, words  the binding with the three matrices, the norm and the biases
// q  [heads][head_dim] f32, rotated            k_ring, v_ring  rows of f16 by ring_row, two channels to a u32
// table  [context][head_dim / 2] (cos, sin), computed on the host in f64
// Grid: (ceil(4 * quads / OUTPUTS)); LANES threads give a quad, or a row of it: channels c, c + 1 and their partners, so
// that whoever rotates also has what it packs. The key that sat in the slot is a whole ring older and outside every window.
// Numerics: f32; K and V rounded to f16 once, clamped to its range. Twin: reference/src/qkv.rs.

@group(0) @binding(4) var<storage, read> table: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> q: array<f32>;
@group(0) @binding(7) var<storage, read_write> k_ring: array<u32>;
@group(0) @binding(8) var<storage, read_write> v_ring: array<u32>;
@group(0) @binding(9) var<uniform> spans: array<HeadSpan, KV_HEADS>;

const HALF: u32 = HEAD_DIM / 2u;
const QUADS_PER_HEAD: u32 = HEAD_DIM / 4u;

// Sets of threads that have a quad together.
const QUAD_SETS: u32 = 4u / SET_ROWS;

// The sums of sets that have a row each.
var<workgroup> row_sums: array<f32, OUTPUTS>;

fn pack(a: f32, b: f32) -> u32 {
    return pack2x16float(clamp(vec2<f32>(a, b), vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let own_set = thread / LANES;
    let quad = group.x * (OUTPUTS / 4u) + own_set / QUAD_SETS;
    let part = own_set % QUAD_SETS;
    // Quads past the end are computed again and not stored.
    let head = (params.first_quad + min(quad, params.quads - 1u)) / QUADS_PER_HEAD;
    let channel = 2u * ((params.first_quad + min(quad, params.quads - 1u)) % QUADS_PER_HEAD);
    var at = params.q_at;
    var scales_at = params.q_scales_at;
    var bias_at = params.q_bias_at;
    var own_head = head;
    if (head >= HEADS + KV_HEADS) {
        at = params.v_at;
        scales_at = params.v_scales_at;
        bias_at = params.v_bias_at;
        own_head = head - HEADS - KV_HEADS;
    } else if (head >= HEADS) {
        at = params.k_at;
        scales_at = params.k_scales_at;
        bias_at = params.k_bias_at;
        own_head = head - HEADS;
    }
    let own_row = own_head * HEAD_DIM + channel + part % 2u + HALF * (part / 2u);
    let row = vec4<u32>(own_row) + vec4<u32>(0u, 1u, HALF, HALF + 1u);
    // On its way beside the weights.
    let position = state.start;
    let span = spans[min(own_head, KV_HEADS - 1u)];
    let turn_a = table[position * HALF + channel];
    let turn_b = table[position * HALF + channel + 1u];
    let biases = vec4<f32>(
        bias_of(bias_at, row.x),
        bias_of(bias_at, row.y),
        bias_of(bias_at, row.z),
        bias_of(bias_at, row.w),
    );
    var sums = biases + rows_product(
        thread,
        row_values(vec4<u32>(at), row, params.cols),
        row_scales(vec4<u32>(scales_at), row, params.cols),
        params.cols,
        0u,
        params.norm_at,
        params.eps,
    );
    if (QUAD_SETS > 1u) {
        if (thread % LANES == 0u) {
            row_sums[own_set] = sums.x;
        }
        workgroupBarrier();
        let first = own_set - part;
        sums = vec4<f32>(row_sums[first], row_sums[first + 1u], row_sums[first + 2u], row_sums[first + 3u]);
    }
    if (thread % (QUAD_SETS * LANES) != 0u || quad >= params.quads || state.len == 0u) {
        return;
    }
    if (head < HEADS + KV_HEADS) {
        sums = vec4<f32>(
            sums.x * turn_a.x - sums.z * turn_a.y,
            sums.y * turn_b.x - sums.w * turn_b.y,
            sums.z * turn_a.x + sums.x * turn_a.y,
            sums.w * turn_b.x + sums.y * turn_b.y,
        );
    }
    if (head < HEADS) {
        q[row.x] = sums.x;
        q[row.y] = sums.y;
        q[row.z] = sums.z;
        q[row.w] = sums.w;
        return;
    }
    let word = ring_row(span, position) * HALF + channel / 2u;
    if (head < HEADS + KV_HEADS) {
        k_ring[word] = pack(sums.x, sums.y);
        k_ring[word + HALF / 2u] = pack(sums.z, sums.w);
    } else {
        v_ring[word] = pack(sums.x, sums.y);
        v_ring[word + HALF / 2u] = pack(sums.z, sums.w);
    }
}
