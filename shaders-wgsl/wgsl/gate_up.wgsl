// y = silu(Wg norm(x)) * (Wu norm(x)): the token in flight through the first half of the feed-forward network.
//
// x  [cols] f32 or codes        values, words  the binding with a piece of each matrix and the norm
// y  [whole rows] f32 or codes, written at [row_offset, row_offset + rows)
// Grid: (ceil(rows / OUTPUTS)); LANES threads give SET_ROWS / 2 rows of either matrix.
// Numerics: f32; exp is held below overflow, where silu is 0 to f32 anyway. Twin: reference/src/gate_up.rs.

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = SET_ROWS / 2u * (thread / LANES);
    let first_row = OUTPUTS * group.x + slot;
    // Rows past the end are computed again and not stored.
    let row = min(vec4<u32>(first_row) + vec4<u32>(0u, 0u, 1u, 1u), vec4<u32>(params.rows - 1u));
    let at = vec4<u32>(params.gate_at, params.up_at, params.gate_at, params.up_at);
    let scales_at = vec4<u32>(
        params.gate_scales_at,
        params.up_scales_at,
        params.gate_scales_at,
        params.up_scales_at,
    );
    let sums = rows_product(
        thread,
        row_values(at, row, params.cols),
        row_scales(scales_at, row, params.cols),
        params.cols,
        0u,
        params.norm_at,
        params.eps,
    );
    if (state.len == 0u) {
        return;
    }
    if (thread % LANES == 0u) {
        let gate = sums.xz;
        let value = gate / (1.0 + exp(min(-gate, vec2<f32>(80.0)))) * sums.yw;
        if (first_row < params.rows) {
            keep(slot, params.row_offset + first_row, value.x);
        }
        if (SET_ROWS == 4u && first_row + 1u < params.rows) {
            keep(slot + 1u, params.row_offset + first_row + 1u, value.y);
        }
    }
    finish(thread, params.row_offset + group.x * OUTPUTS, params.row_offset + params.rows);
}
