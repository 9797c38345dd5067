// Four rows of weights against one token, with the norm in the load: what `project`, `qkv` and `gate_up` share.
//
// LANES of 256 threads share four rows, so 256 / LANES sets of four rows make a workgroup; where SET_ROWS is 2, only
// two: few rows are more workgroups then, and results 2 and 3 mean nothing. The inputs go through
// workgroup memory in tiles of 2,048 columns, of which neighboring lanes take neighboring groups of 32. Each input is
// multiplied with the norm's weight on its way, and the sum of squares is taken along: every workgroup finds the root of
// the mean square by itself.
// The tile and the block after the current ones are on their way while the current ones are multiplied; the first
// ones, and whatever else the caller has asked for, are on their way before it is known whether a token is in flight.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;

const TILE_GROUPS: u32 = 64u;
// One vector more than groups, so that a group's vectors fall into different banks.
const TILE_STRIDE: u32 = TILE_GROUPS + 1u;

// [vector of a group][group]: neighboring lanes, which take neighboring groups, read neighboring vectors.
var<workgroup> tile: array<vec4<f32>, 8u * TILE_STRIDE>;

struct Input {
    value: vec4<f32>,
    norm: vec4<f32>,
}

// Four inputs and the norm's weights for them; nothing past the end of the row.
fn load_input(col4: u32, cols4: u32, first_input: u32, norm_at: u32) -> Input {
    if (col4 >= cols4) {
        return Input(vec4<f32>(0.0), vec4<f32>(0.0));
    }
    return Input(x[first_input + col4], norm4(norm_at, col4));
}

// The products of the rows that begin at these indices of `values` and of the scales with the token whose inputs
// begin at first_input, divided by the root of the mean square where there is a norm. Only lane 0 of a set gets them.
fn rows_product(
    thread: u32,
    values_at: vec4<u32>,
    scales_at: vec4<u32>,
    cols: u32,
    first_input: u32,
    norm_at: u32,
    eps: f32,
) -> vec4<f32> {
    let cols4 = cols / 4u;
    let groups = (cols4 + 7u) / 8u;
    let lane = thread % LANES;
    let first = min(lane, groups - 1u);
    var block_0 = load_block(values_at.x, scales_at.x, first);
    var block_1 = load_block(values_at.y, scales_at.y, first);
    var block_2 = block_0;
    var block_3 = block_1;
    if (SET_ROWS == 4u) {
        block_2 = load_block(values_at.z, scales_at.z, first);
        block_3 = load_block(values_at.w, scales_at.w, first);
    }
    // Two inputs of a tile a thread.
    let slot = (thread % 8u) * TILE_STRIDE + thread / 8u;
    var input_a = load_input(thread, cols4, first_input, norm_at);
    var input_b = load_input(thread + THREADS, cols4, first_input, norm_at);
    if (state.len == 0u) {
        return vec4<f32>(0.0);
    }
    var sums = vec4<f32>(0.0);
    var square_sum = 0.0;
    for (var tile_first = 0u; tile_first < groups; tile_first += TILE_GROUPS) {
        let tile_groups = min(groups - tile_first, TILE_GROUPS);
        if (NORM) {
            square_sum += dot(input_a.value, input_a.value) + dot(input_b.value, input_b.value);
            input_a.value *= input_a.norm;
            input_b.value *= input_b.norm;
        }
        workgroupBarrier();
        tile[slot] = input_a.value;
        tile[slot + THREADS / 8u] = input_b.value;
        workgroupBarrier();
        let next_input = 8u * (tile_first + TILE_GROUPS) + thread;
        input_a = load_input(next_input, cols4, first_input, norm_at);
        input_b = load_input(next_input + THREADS, cols4, first_input, norm_at);
        for (var in_tile = lane; in_tile < tile_groups; in_tile += LANES) {
            let group = tile_first + in_tile;
            let next = min(group + LANES, groups - 1u);
            let next_0 = load_block(values_at.x, scales_at.x, next);
            let next_1 = load_block(values_at.y, scales_at.y, next);
            var next_2 = next_0;
            var next_3 = next_1;
            if (SET_ROWS == 4u) {
                next_2 = load_block(values_at.z, scales_at.z, next);
                next_3 = load_block(values_at.w, scales_at.w, next);
            }
            let inputs = array<vec4<f32>, 8>(
                tile[in_tile],
                tile[TILE_STRIDE + in_tile],
                tile[2u * TILE_STRIDE + in_tile],
                tile[3u * TILE_STRIDE + in_tile],
                tile[4u * TILE_STRIDE + in_tile],
                tile[5u * TILE_STRIDE + in_tile],
                tile[6u * TILE_STRIDE + in_tile],
                tile[7u * TILE_STRIDE + in_tile],
            );
            let four = ((inputs[0] + inputs[1]) + (inputs[2] + inputs[3]))
                + ((inputs[4] + inputs[5]) + (inputs[6] + inputs[7]));
            let sum = (four.x + four.y) + (four.z + four.w);
            sums.x += dot_block(block_0, cols, group, inputs, sum);
            sums.y += dot_block(block_1, cols, group, inputs, sum);
            if (SET_ROWS == 4u) {
                sums.z += dot_block(block_2, cols, group, inputs, sum);
                sums.w += dot_block(block_3, cols, group, inputs, sum);
            }
            block_0 = next_0;
            block_1 = next_1;
            block_2 = next_2;
            block_3 = next_3;
        }
    }

    let all = set_sums(thread, own_rows(sums), square_sum);
    if (NORM) {
        return all_rows(all.sums * (1.0 / sqrt(all.squares / f32(cols) + eps)));
    }
    return all_rows(all.sums);
}
