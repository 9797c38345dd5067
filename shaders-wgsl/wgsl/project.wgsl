// y = W norm(x) (+ y): the token in flight against the pieces of a weight matrix that lie in one binding. For decode:
// the output and down projections with the residual, and lm_head with the final norm, of the last token in flight.
//
// x  [len][cols] f32            values, words  the binding, as vectors and as words: pieces of [piece_rows][cols]
// vector  [cols] weights of the norm, where there is one
// y  [whole rows] f32, written at [row_offset, row_offset + rows)
// Grid: (ceil(rows / (4 * THREADS / LANES))); LANES threads give four rows. Nothing happens with no token in flight.
// Numerics: f32; partial sums in a fixed order; the norm's division after the sum. Twin: reference/src/project.rs.

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (state.len == 0u) {
        return;
    }
    let first_row = 4u * (group.x * (THREADS / LANES) + thread / LANES);
    // Rows past the end are computed again and not stored.
    let row = min(vec4<u32>(first_row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.rows - 1u));
    let places = places_of(row);
    let sums = four_rows(
        thread,
        places.values_at,
        places.scales_at,
        params.cols,
        (state.len - 1u) * (params.cols / 4u),
        0u,
        params.eps,
    );
    if (thread % LANES == 0u) {
        for (var index = 0u; index < 4u; index += 1u) {
            if (first_row + index < params.rows) {
                let out = params.row_offset + first_row + index;
                var value = sums[index];
                if (ADD_TO_Y) {
                    value += y[out];
                }
                y[out] = value;
            }
        }
    }
}
