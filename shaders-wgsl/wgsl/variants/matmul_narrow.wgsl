// y = x W^T (+ bias) (+ y): matmul for software adapters, which are two to three times quicker with small workgroups
// whose threads have much to do: here 64 threads with 8 x 8 results each. Nothing else differs.
//
// x  [len][cols] f32           values, scales  the piece, [rows][cols]         vector  bias of the whole matrix
// y  [len][y_stride] f32, written at columns [row_offset, row_offset + rows)
// Grid: (ceil(rows / 64), ceil(len / 64)); a workgroup of 64 gives 64 rows of 64 tokens, a thread 8 x 8 of them.
// Workgroup memory: 64 tokens and 64 rows by 32 columns, 16 KiB. Weights are dequantized once a tile.
// Numerics: f32 sums in ascending column order. Twin: reference/src/matmul.rs.

@group(0) @binding(0) var<uniform> params: PieceParams;
@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const TILE: u32 = 64u;
const TILE_COLS4: u32 = 8u;

// [col4][token] and [col4][row]: neighboring threads read neighboring vectors.
var<workgroup> tile_x: array<vec4<f32>, 512>;
var<workgroup> tile_w: array<vec4<f32>, 512>;

fn store_one(index: u32, whole_row: u32, value: f32) {
    var sum = value + vector_at(whole_row);
    if (ADD_TO_Y) {
        sum += y[index];
    }
    y[index] = sum;
}

// Rows row, row + 8, .. row + 56 of one token.
fn store(token: u32, row: u32, low: vec4<f32>, high: vec4<f32>) {
    if (token >= state.len) {
        return;
    }
    for (var index = 0u; index < 8u; index += 1u) {
        let piece_row = row + 8u * index;
        if (piece_row < params.rows) {
            let whole_row = params.row_offset + piece_row;
            let value = select(high[index % 4u], low[index % 4u], index < 4u);
            store_one(token * params.y_stride + whole_row, whole_row, value);
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile_row = group_id.x * TILE;
    let tile_token = group_id.y * TILE;
    if (tile_token >= state.len) {
        return;
    }
    let cols4 = params.cols / 4u;
    let groups = (params.cols + QUANT_GROUP - 1u) / QUANT_GROUP;
    let lane_row = thread % 8u;
    let lane_token = thread / 8u;
    let load_row = min(tile_row + thread, params.rows - 1u);

    var low_0 = vec4<f32>(0.0);
    var high_0 = vec4<f32>(0.0);
    var low_1 = vec4<f32>(0.0);
    var high_1 = vec4<f32>(0.0);
    var low_2 = vec4<f32>(0.0);
    var high_2 = vec4<f32>(0.0);
    var low_3 = vec4<f32>(0.0);
    var high_3 = vec4<f32>(0.0);
    var low_4 = vec4<f32>(0.0);
    var high_4 = vec4<f32>(0.0);
    var low_5 = vec4<f32>(0.0);
    var high_5 = vec4<f32>(0.0);
    var low_6 = vec4<f32>(0.0);
    var high_6 = vec4<f32>(0.0);
    var low_7 = vec4<f32>(0.0);
    var high_7 = vec4<f32>(0.0);
    for (var group = 0u; group < groups; group += 1u) {
        let a = load_quarter(load_row, group, 0u, params.cols);
        let b = load_quarter(load_row, group, 1u, params.cols);
        let c = load_quarter(load_row, group, 2u, params.cols);
        let d = load_quarter(load_row, group, 3u, params.cols);
        workgroupBarrier();
        tile_w[thread] = first_four(a);
        tile_w[TILE + thread] = last_four(a);
        tile_w[2u * TILE + thread] = first_four(b);
        tile_w[3u * TILE + thread] = last_four(b);
        tile_w[4u * TILE + thread] = first_four(c);
        tile_w[5u * TILE + thread] = last_four(c);
        tile_w[6u * TILE + thread] = first_four(d);
        tile_w[7u * TILE + thread] = last_four(d);
        for (var index = thread; index < 512u; index += 64u) {
            let token = tile_token + index / TILE_COLS4;
            let col4 = group * TILE_COLS4 + index % TILE_COLS4;
            var value = vec4<f32>(0.0);
            if (token < state.len && (!HAS_TAIL || col4 < cols4)) {
                value = x[token * cols4 + col4];
            }
            tile_x[(index % TILE_COLS4) * TILE + index / TILE_COLS4] = value;
        }
        workgroupBarrier();
        for (var col4 = 0u; col4 < TILE_COLS4; col4 += 1u) {
            let at_w = col4 * TILE + lane_row;
            let at_x = col4 * TILE + lane_token;
            let rows_low = mat4x4<f32>(tile_w[at_w], tile_w[at_w + 8u], tile_w[at_w + 16u], tile_w[at_w + 24u]);
            let rows_high = mat4x4<f32>(tile_w[at_w + 32u], tile_w[at_w + 40u], tile_w[at_w + 48u], tile_w[at_w + 56u]);
            let x_0 = tile_x[at_x + 0u];
            low_0 += x_0 * rows_low;
            high_0 += x_0 * rows_high;
            let x_1 = tile_x[at_x + 8u];
            low_1 += x_1 * rows_low;
            high_1 += x_1 * rows_high;
            let x_2 = tile_x[at_x + 16u];
            low_2 += x_2 * rows_low;
            high_2 += x_2 * rows_high;
            let x_3 = tile_x[at_x + 24u];
            low_3 += x_3 * rows_low;
            high_3 += x_3 * rows_high;
            let x_4 = tile_x[at_x + 32u];
            low_4 += x_4 * rows_low;
            high_4 += x_4 * rows_high;
            let x_5 = tile_x[at_x + 40u];
            low_5 += x_5 * rows_low;
            high_5 += x_5 * rows_high;
            let x_6 = tile_x[at_x + 48u];
            low_6 += x_6 * rows_low;
            high_6 += x_6 * rows_high;
            let x_7 = tile_x[at_x + 56u];
            low_7 += x_7 * rows_low;
            high_7 += x_7 * rows_high;
        }
    }
    let first_token = tile_token + lane_token;
    let first_row = tile_row + lane_row;
    store(first_token + 0u, first_row, low_0, high_0);
    store(first_token + 8u, first_row, low_1, high_1);
    store(first_token + 16u, first_row, low_2, high_2);
    store(first_token + 24u, first_row, low_3, high_3);
    store(first_token + 32u, first_row, low_4, high_4);
    store(first_token + 40u, first_row, low_5, high_5);
    store(first_token + 48u, first_row, low_6, high_6);
    store(first_token + 56u, first_row, low_7, high_7);
}
