// Blocks of 32 q4 weights for the fused kernels: 16 bytes of nibbles, low nibble first, and a u32 with the f16
// scale (low half) and minimum; w = scale * q + minimum. A nibble is put into the mantissa of a float that begins
// at 1: the value is 1 + q / 16, no conversion is needed, and w = 16 * scale * (1 + q / 16) + minimum - 16 * scale.

@group(0) @binding(3) var<storage, read> values: array<vec4<u32>>;

const VALUES_PER_PLACE: u32 = PLACE_BYTES / 16u;

struct Block {
    words: vec4<u32>,
    scale: u32,
}

// First index in `values` of each row, of matrices at these places.
fn row_values(at: vec4<u32>, row: vec4<u32>, cols: u32) -> vec4<u32> {
    return at * VALUES_PER_PLACE + row * (cols / QUANT_GROUP);
}

// First index among the scales of each row.
fn row_scales(at: vec4<u32>, row: vec4<u32>, cols: u32) -> vec4<u32> {
    return at * WORDS_PER_PLACE + row * (cols / QUANT_GROUP);
}

fn load_block(values_at: u32, scales_at: u32, group: u32) -> Block {
    return Block(values[values_at + group], words[scales_at + group]);
}

fn low_half(word: u32) -> vec4<f32> {
    let bits = (vec4<u32>(word) << vec4<u32>(19u, 15u, 11u, 7u)) & vec4<u32>(0x00780000u);
    return bitcast<vec4<f32>>(bits | vec4<u32>(0x3f800000u));
}

fn high_half(word: u32) -> vec4<f32> {
    let shifted = vec4<u32>(word << 3u, word >> 1u, word >> 5u, word >> 9u);
    return bitcast<vec4<f32>>((shifted & vec4<u32>(0x00780000u)) | vec4<u32>(0x3f800000u));
}

// Dot product of a block with 32 inputs, whose sum is x_sum.
fn dot_block(block: Block, cols: u32, group: u32, x: array<vec4<f32>, 8>, x_sum: f32) -> f32 {
    var sum = low_half(block.words.x) * x[0] + high_half(block.words.x) * x[1];
    sum += low_half(block.words.y) * x[2] + high_half(block.words.y) * x[3];
    sum += low_half(block.words.z) * x[4] + high_half(block.words.z) * x[5];
    sum += low_half(block.words.w) * x[6] + high_half(block.words.w) * x[7];
    let scale = unpack2x16float(block.scale);
    let step = 16.0 * scale.x;
    return step * ((sum.x + sum.y) + (sum.z + sum.w)) + (scale.y - step) * x_sum;
}

// Four weights of the row that begins at these indices.
fn four_of_row(values_at: u32, scales_at: u32, col4: u32) -> vec4<f32> {
    let word = values[values_at + col4 / 8u][(col4 / 2u) % 4u] >> (16u * (col4 % 2u));
    let nibbles = (vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    let scale = unpack2x16float(words[scales_at + col4 / 8u]);
    return scale.x * vec4<f32>(nibbles) + vec4<f32>(scale.y);
}
