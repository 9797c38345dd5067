// y = W x (+ bias) (+ y): one token, or a few, against a piece of a weight matrix. For decode and short chunks.
//
// x  [len][cols] f32           values, scales  the piece, [rows][cols]         vector  bias of the whole matrix
// y  [len][y_stride] f32, written at columns [row_offset, row_offset + rows)
// Grid: (ceil(rows / 16), len); a workgroup of 64 gives 16 rows, 8 threads to a pair of rows.
// Numerics: f32 sums, one partial a thread, added in a fixed order. Twin: reference/src/matvec.rs.

@group(0) @binding(0) var<uniform> params: PieceParams;
@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const LANES: u32 = 8u;
const TILE_ROWS: u32 = 16u;

var<workgroup> partial: array<f32, 128>;

fn input4(base: u32, col4: u32) -> vec4<f32> {
    if (HAS_TAIL && col4 >= params.cols / 4u) {
        return vec4<f32>(0.0);
    }
    return x[base + col4];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group_id.y;
    if (token >= state.len) {
        return;
    }
    let lane = thread % LANES;
    let pair = thread / LANES;
    let first_row = group_id.x * TILE_ROWS;
    // Rows past the end are computed again and not stored.
    let row_a = min(first_row + 2u * pair, params.rows - 1u);
    let row_b = min(first_row + 2u * pair + 1u, params.rows - 1u);
    let base = token * (params.cols / 4u);
    let groups = (params.cols + QUANT_GROUP - 1u) / QUANT_GROUP;
    let ones = vec4<f32>(1.0);

    var sum_a = 0.0;
    var sum_b = 0.0;
    for (var group = lane; group < groups; group += LANES) {
        let col4 = group * 8u;
        let inputs = array<vec4<f32>, 8>(
            input4(base, col4),
            input4(base, col4 + 1u),
            input4(base, col4 + 2u),
            input4(base, col4 + 3u),
            input4(base, col4 + 4u),
            input4(base, col4 + 5u),
            input4(base, col4 + 6u),
            input4(base, col4 + 7u),
        );
        let low = (inputs[0] + inputs[1]) + (inputs[2] + inputs[3]);
        let high = (inputs[4] + inputs[5]) + (inputs[6] + inputs[7]);
        let input_sum = dot(low + high, ones);
        sum_a += dot_group(row_a, group, params.cols, inputs, input_sum);
        sum_b += dot_group(row_b, group, params.cols, inputs, input_sum);
    }
    partial[(2u * pair) * LANES + lane] = sum_a;
    partial[(2u * pair + 1u) * LANES + lane] = sum_b;
    workgroupBarrier();

    let row = first_row + thread;
    if (thread < TILE_ROWS && row < params.rows) {
        var sum = 0.0;
        for (var index = 0u; index < LANES; index += 1u) {
            sum += partial[thread * LANES + index];
        }
        let whole_row = params.row_offset + row;
        let index = token * params.y_stride + whole_row;
        sum += vector_at(whole_row);
        if (ADD_TO_Y) {
            sum += y[index];
        }
        y[index] = sum;
    }
}
