// y = x W^T (+ bias) (+ y): the tokens of a chunk against a piece of a weight matrix. For prefill.
//
// x  [len][cols] f32           values, scales  the piece, [rows][cols]         vector  bias of the whole matrix
// y  [len][y_stride] f32, written at columns [row_offset, row_offset + rows)
// Grid: (ceil(rows / 64), ceil(len / TILE_TOKENS)); a workgroup of 256 gives 64 rows of 64 or 32 tokens, a thread 4 rows of
// 4 or 2. Workgroup memory: the tokens and 64 rows by 32 columns, 16 KiB at most. Weights are dequantized once a tile; the next tile is
// on its way, as stored, while the current one is multiplied.
// Numerics: f32 sums in ascending column order. Twin: reference/src/matmul.rs.

const TILE: u32 = 64u;
const TILE_COLS4: u32 = 8u;

// [col4][token ^ col4] and [col4][row ^ col4]: neighboring threads reach different banks, be it along a row or across.
var<workgroup> tile_x: array<vec4<f32>, TILE_TOKENS * TILE_COLS4>;
var<workgroup> tile_w: array<vec4<f32>, 512>;

fn load_x(token: u32, col4: u32, cols4: u32) -> vec4<f32> {
    if (token >= state.len || (HAS_TAIL && col4 >= cols4)) {
        return vec4<f32>(0.0);
    }
    return x[token * cols4 + col4];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile_row = group_id.x * TILE;
    let tile_token = group_id.y * TILE_TOKENS;
    if (tile_token >= state.len) {
        return;
    }
    let cols4 = params.cols / 4u;
    let groups = (params.cols + QUANT_GROUP - 1u) / QUANT_GROUP;
    // On the way in a thread has a quarter of a group of a row, and one vector each of two tokens.
    let load_row = thread / 4u;
    let quarter = thread % 4u;
    let source_row = min(tile_row + load_row, params.rows - 1u);
    let load_token = thread / TILE_COLS4;
    let load_col4 = thread % TILE_COLS4;
    let slot_w = 2u * quarter * TILE + (load_row ^ (2u * quarter));
    let slot_w_next = (2u * quarter + 1u) * TILE + (load_row ^ (2u * quarter + 1u));
    let slot_x = load_col4 * TILE_TOKENS + (load_token ^ load_col4);
    // In the product 32 threads have 8 neighboring rows of 4 neighboring tokens.
    let lane_row = thread % 8u + 8u * ((thread / 32u) % 2u);
    let lane_token = (thread / 8u) % 4u + 4u * (thread / 64u);

    var weights = load_quarter(source_row, 0u, quarter, params.cols);
    var x_low = load_x(tile_token + load_token, load_col4, cols4);
    var x_high = vec4<f32>(0.0);
    if (TILE_TOKENS == 64u) {
        x_high = load_x(tile_token + load_token + 32u, load_col4, cols4);
    }
    var sums_0 = vec4<f32>(0.0);
    var sums_1 = vec4<f32>(0.0);
    var sums_2 = vec4<f32>(0.0);
    var sums_3 = vec4<f32>(0.0);
    for (var group = 0u; group < groups; group += 1u) {
        workgroupBarrier();
        tile_w[slot_w] = first_four(weights);
        tile_w[slot_w_next] = last_four(weights);
        tile_x[slot_x] = x_low;
        if (TILE_TOKENS == 64u) {
            tile_x[slot_x + 32u] = x_high;
        }
        workgroupBarrier();
        let next = min(group + 1u, groups - 1u);
        weights = load_quarter(source_row, next, quarter, params.cols);
        x_low = load_x(tile_token + load_token, next * TILE_COLS4 + load_col4, cols4);
        if (TILE_TOKENS == 64u) {
            x_high = load_x(tile_token + load_token + 32u, next * TILE_COLS4 + load_col4, cols4);
        }
        for (var col4 = 0u; col4 < TILE_COLS4; col4 += 1u) {
            let at_w = col4 * TILE + (lane_row ^ col4);
            let at_x = col4 * TILE_TOKENS + (lane_token ^ col4);
            let rows = mat4x4<f32>(tile_w[at_w], tile_w[at_w + 16u], tile_w[at_w + 32u], tile_w[at_w + 48u]);
            sums_0 += tile_x[at_x] * rows;
            sums_1 += tile_x[at_x + 16u] * rows;
            if (TILE_TOKENS == 64u) {
                sums_2 += tile_x[at_x + 32u] * rows;
                sums_3 += tile_x[at_x + 48u] * rows;
            }
        }
    }
    store_all(tile_token + lane_token, tile_row + lane_row, array<vec4<f32>, 4>(sums_0, sums_1, sums_2, sums_3));
}
