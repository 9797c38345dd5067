// Blocks of 32 q4 weights for the fused kernels: 16 bytes of nibbles, low nibble first, and a u32 with the f16
// scale (low half) and minimum; w = scale * q + minimum. Nibbles are put, two at a time, into the mantissas of halves
// that begin at 1: the values are 1 + q / 16, and w = 16 * scale * (1 + q / 16) + minimum - 16 * scale.

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

// Nibbles n and n + 4 of a word that is shifted so that they lie in the upper mantissa bits of its halves.
fn nibbles(shifted: u32) -> vec2<f32> {
    return unpack2x16float((shifted & 0x03c003c0u) | 0x3c003c00u);
}

// Products of a word's eight weights with as many inputs.
fn products(word: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    let a = nibbles(word << 6u);
    let b = nibbles(word << 2u);
    let c = nibbles(word >> 2u);
    let d = nibbles(word >> 6u);
    return vec4<f32>(a.x, b.x, c.x, d.x) * low + vec4<f32>(a.y, b.y, c.y, d.y) * high;
}

// Dot product of a block with 32 inputs, whose sum is x_sum.
fn dot_block(block: Block, cols: u32, group: u32, x: array<vec4<f32>, 8>, x_sum: f32) -> f32 {
    let sum = (products(block.words.x, x[0], x[1]) + products(block.words.y, x[2], x[3]))
        + (products(block.words.z, x[4], x[5]) + products(block.words.w, x[6], x[7]));
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
