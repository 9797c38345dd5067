// y = x W^T (+ bias) (+ y): matmul for quantized weights, whose stored whole numbers are multiplied as they are, be it in
// f16 or as packed bytes. Inputs are scaled by the largest of their group of 32 columns; the products of a group are
// summed in the tiles' type, scaled and summed further in f32.
//
// x  [len][cols] f32           values, scales  the piece, [rows][cols]         vector  bias of the whole matrix
// y  [len][y_stride] f32, written at columns [row_offset, row_offset + rows)
// Grid: (ceil(rows / 64), ceil(len / TILE_TOKENS)); a workgroup of 256 gives 64 rows of 64 or 32 tokens, a thread 4 rows
// of 4 or 2. cols is a multiple of 32. The next group is on its way, as stored, while the current one is multiplied.
// Numerics: what the tiles say within a group, f32 sums of groups in ascending order. Twin: reference/src/matmul.rs.

const TILE: u32 = 64u;
// Four elements more than lines, so that those that come in together fall into different banks.
const ROW_STRIDE: u32 = TILE + 4u;
const TOKEN_STRIDE: u32 = TILE_TOKENS + 4u;

// [element][row] and [element][token]; the order of columns within a quarter of a group is that of the weights' bytes.
var<workgroup> tile_w: array<Element, ROW_STRIDE * ELEMENTS>;
var<workgroup> tile_x: array<Element, TOKEN_STRIDE * ELEMENTS>;
// Scale and sum of each token's inputs, scale and offset of each row's weights.
var<workgroup> token_scales: array<vec2<f32>, TILE_TOKENS>;
var<workgroup> row_scales: array<vec2<f32>, TILE>;
// Largest and sum of each thread's inputs.
var<workgroup> quarters: array<vec2<f32>, 256>;

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// A quarter of a group of a token's inputs; nothing where there is no token.
fn load_x(token: u32, group: u32, quarter: u32) -> Eight {
    if (token >= state.len) {
        return Eight(vec4<f32>(0.0), vec4<f32>(0.0));
    }
    let at = token * (params.cols / 4u) + 8u * group + 2u * quarter;
    return Eight(x[at], x[at + 1u]);
}

fn largest_and_sum(inputs: Eight) -> vec2<f32> {
    let largest = max(abs(inputs.low), abs(inputs.high));
    let sum = inputs.low + inputs.high;
    return vec2<f32>(max(max(largest.x, largest.y), max(largest.z, largest.w)), (sum.x + sum.y) + (sum.z + sum.w));
}

// A group's sums for one token, scaled.
fn scaled_sums(dots: Dots, token: u32, scales: vec4<f32>, offsets: vec4<f32>) -> vec4<f32> {
    let of_token = token_scales[token];
    let sums = of_token.x * scales * sums_of(dots);
    if (HAS_OFFSET) {
        return sums + of_token.y * offsets;
    }
    return sums;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile_row = group_id.x * TILE;
    let tile_token = group_id.y * TILE_TOKENS;
    if (tile_token >= state.len) {
        return;
    }
    let groups = params.cols / QUANT_GROUP;
    // On the way in a thread has a quarter of a group of a row, and of a token.
    let line = thread / 4u;
    let quarter = thread % 4u;
    let source_row = min(tile_row + line, params.rows - 1u);
    let has_token = line < TILE_TOKENS;
    // Without a token of its own a thread asks for none.
    let source_token = select(0xffffffffu, tile_token + line, has_token);
    // In the product 32 threads have 8 neighboring rows of 4 neighboring tokens.
    let lane_row = thread % 8u + 8u * ((thread / 32u) % 2u);
    let lane_token = (thread / 8u) % 4u + 4u * (thread / 64u);

    var weights = load_quarter(source_row, 0u, quarter, params.cols);
    var inputs = load_x(source_token, 0u, quarter);
    var sums_0 = vec4<f32>(0.0);
    var sums_1 = vec4<f32>(0.0);
    var sums_2 = vec4<f32>(0.0);
    var sums_3 = vec4<f32>(0.0);
    for (var group = 0u; group < groups; group += 1u) {
        quarters[thread] = largest_and_sum(inputs);
        workgroupBarrier();
        store_weights(quarter, line, bytes_of(weights));
        let a = quarters[thread - quarter];
        let b = quarters[thread - quarter + 1u];
        let c = quarters[thread - quarter + 2u];
        let d = quarters[thread - quarter + 3u];
        let largest = max(max(a.x, b.x), max(c.x, d.x));
        if (has_token) {
            let factor = select(LARGEST / largest, 0.0, largest < 1.0e-30);
            let first = first_inputs(inputs.low, inputs.high);
            let last = last_inputs(inputs.low, inputs.high);
            store_inputs(quarter, line, factor * first, factor * last);
        }
        if (quarter == 0u) {
            row_scales[line] = scale_and_offset(weights);
            if (has_token) {
                token_scales[line] = vec2<f32>(largest / LARGEST, (a.y + b.y) + (c.y + d.y));
            }
        }
        workgroupBarrier();
        let next = min(group + 1u, groups - 1u);
        weights = load_quarter(source_row, next, quarter, params.cols);
        inputs = load_x(source_token, next, quarter);
        var dots_0 = Dots();
        var dots_1 = Dots();
        var dots_2 = Dots();
        var dots_3 = Dots();
        for (var element = 0u; element < ELEMENTS; element += 1u) {
            let at_w = element * ROW_STRIDE + lane_row;
            let at_x = element * TOKEN_STRIDE + lane_token;
            let rows = array<Element, 4>(tile_w[at_w], tile_w[at_w + 16u], tile_w[at_w + 32u], tile_w[at_w + 48u]);
            dots_0 = add_products(dots_0, rows, tile_x[at_x]);
            dots_1 = add_products(dots_1, rows, tile_x[at_x + 16u]);
            if (TILE_TOKENS == 64u) {
                dots_2 = add_products(dots_2, rows, tile_x[at_x + 32u]);
                dots_3 = add_products(dots_3, rows, tile_x[at_x + 48u]);
            }
        }
        let a_row = row_scales[lane_row];
        let b_row = row_scales[lane_row + 16u];
        let c_row = row_scales[lane_row + 32u];
        let d_row = row_scales[lane_row + 48u];
        let scales = vec4<f32>(a_row.x, b_row.x, c_row.x, d_row.x);
        let offsets = vec4<f32>(a_row.y, b_row.y, c_row.y, d_row.y);
        sums_0 += scaled_sums(dots_0, lane_token, scales, offsets);
        sums_1 += scaled_sums(dots_1, lane_token + 16u, scales, offsets);
        if (TILE_TOKENS == 64u) {
            sums_2 += scaled_sums(dots_2, lane_token + 32u, scales, offsets);
            sums_3 += scaled_sums(dots_3, lane_token + 48u, scales, offsets);
        }
    }
    store_all(tile_token + lane_token, tile_row + lane_row, array<vec4<f32>, 4>(sums_0, sums_1, sums_2, sums_3));
}
