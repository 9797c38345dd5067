// y = W norm(x) (+ y): the token in flight against the pieces of a weight matrix that lie in one binding. For decode:
// the output and down projections with the residual, and lm_head with the final norm, of the last
// token in flight. Where codes are left, the kernel that takes them in needs no norm in its load.
//
// x  [len][cols] f32, or the codes of one token      values, words  the binding, as vectors and as words: pieces of [piece_rows][cols]
// vector  [cols] weights of the norm, where there is one in the load; [whole rows] of the next one where codes are left
// y  [whole rows] f32, written at [row_offset, row_offset + rows)
// Grid: (ceil(rows / (SET_ROWS * THREADS / LANES))); LANES threads give SET_ROWS rows. Nothing happens with no token in flight;
// what is added to belongs to one token, the only one in flight then.
// Numerics: f32; partial sums in a fixed order; the norm's division after the sum. Twin: reference/src/project.rs.

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = SET_ROWS * (group.x * (THREADS / LANES) + thread / LANES);
    // Rows past the end are computed again and not stored.
    let row = min(vec4<u32>(first_row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.rows - 1u));
    let places = places_of(row);
    let stores = thread % LANES == 0u;
    let out = params.row_offset + first_row;
    let norm = next_norm(params.row_offset + row.x);
    var before = vec4<f32>(0.0);
    var first_input = 0u;
    if (!ADD_TO_Y) {
        first_input = (max(state.len, 1u) - 1u) * (params.cols / 4u);
    } else if (stores) {
        let last = params.row_offset + row;
        before.x = y[last.x];
        if (SET_ROWS >= 2u) {
            before.y = y[last.y];
        }
        if (SET_ROWS == 4u) {
            before.z = y[last.z];
            before.w = y[last.w];
        }
    }
    let sums = before + rows_product(
        thread,
        places.values_at,
        places.scales_at,
        params.cols,
        first_input,
        0u,
        params.eps,
    );
    if (state.len == 0u) {
        return;
    }
    if (stores && first_row < params.rows) {
        y[out] = sums.x;
    }
    if (SET_ROWS >= 2u && stores && first_row + 1u < params.rows) {
        y[out + 1u] = sums.y;
    }
    if (SET_ROWS == 4u && stores && first_row + 2u < params.rows) {
        y[out + 2u] = sums.z;
    }
    if (SET_ROWS == 4u && stores && first_row + 3u < params.rows) {
        y[out + 3u] = sums.w;
    }
    leave(thread, params.row_offset + OUTPUTS * group.x, params.row_offset + params.rows, stores, sums.x, norm);
}
