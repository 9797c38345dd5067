// Blocks of 32 q8 weights for the fused kernels: 32 signed bytes, and an f16 scale, two to a u32; w = scale * q.

@group(0) @binding(3) var<storage, read> values: array<vec4<u32>>;

const VALUES_PER_PLACE: u32 = PLACE_BYTES / 16u;

struct Block {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
}

// First index in `values` of each row, of matrices at these places.
fn row_values(at: vec4<u32>, row: vec4<u32>, cols: u32) -> vec4<u32> {
    return at * VALUES_PER_PLACE + row * (cols / 16u);
}

// First index among the scales, counted in halves, of each row.
fn row_scales(at: vec4<u32>, row: vec4<u32>, cols: u32) -> vec4<u32> {
    return at * (2u * WORDS_PER_PLACE) + row * (cols / QUANT_GROUP);
}

fn scale_of(half: u32) -> f32 {
    let pair = unpack2x16float(words[half / 2u]);
    return select(pair.x, pair.y, half % 2u == 1u);
}

fn load_block(values_at: u32, scales_at: u32, group: u32) -> Block {
    let first = values_at + 2u * group;
    return Block(values[first], values[first + 1u], scale_of(scales_at + group));
}

fn bytes4(word: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// Dot product of a block with 32 inputs; their sum is of use to q4 only.
fn dot_block(block: Block, cols: u32, group: u32, x: array<vec4<f32>, 8>, x_sum: f32) -> f32 {
    var sum = bytes4(block.low.x) * x[0] + bytes4(block.low.y) * x[1];
    sum += bytes4(block.low.z) * x[2] + bytes4(block.low.w) * x[3];
    sum += bytes4(block.high.x) * x[4] + bytes4(block.high.y) * x[5];
    sum += bytes4(block.high.z) * x[6] + bytes4(block.high.w) * x[7];
    return block.scale * ((sum.x + sum.y) + (sum.z + sum.w));
}

// Four weights of the row that begins at these indices.
fn four_of_row(values_at: u32, scales_at: u32, col4: u32) -> vec4<f32> {
    return scale_of(scales_at + col4 / 8u) * bytes4(values[values_at + col4 / 4u][col4 % 4u]);
}
