// A q4 weight piece: 32 nibbles to a group, low nibble first, then one u32 a group with the f16 scale in the
// low half and the f16 minimum in the high half; w = scale * q + minimum. cols is a multiple of 32.

@group(0) @binding(3) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> scales: array<u32>;

const HAS_TAIL: bool = false;

fn low_nibbles(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u));
}

// Four weights of a row, from column 4 * col4 on.
fn weight4(row: u32, col4: u32, cols: u32) -> vec4<f32> {
    let group = row * (cols / QUANT_GROUP) + col4 / 8u;
    let word = values[group][(col4 / 2u) % 4u];
    let scale = unpack2x16float(scales[group]);
    return scale.x * low_nibbles(word >> ((col4 % 2u) * 16u)) + vec4<f32>(scale.y);
}

// Eight weights as they are stored.
struct Stored {
    word: u32,
    scale: u32,
}

// A quarter of a group of a row.
fn load_quarter(row: u32, group: u32, quarter: u32, cols: u32) -> Stored {
    let index = row * (cols / QUANT_GROUP) + group;
    return Stored(values[index][quarter], scales[index]);
}

fn first_four(stored: Stored) -> vec4<f32> {
    let scale = unpack2x16float(stored.scale);
    return scale.x * low_nibbles(stored.word) + vec4<f32>(scale.y);
}

fn last_four(stored: Stored) -> vec4<f32> {
    let scale = unpack2x16float(stored.scale);
    return scale.x * low_nibbles(stored.word >> 16u) + vec4<f32>(scale.y);
}

// Dot product of one group of a row with the 32 inputs x, whose sum is x_sum.
fn dot_group(row: u32, group: u32, cols: u32, x: array<vec4<f32>, 8>, x_sum: f32) -> f32 {
    let index = row * (cols / QUANT_GROUP) + group;
    let words = values[index];
    let scale = unpack2x16float(scales[index]);
    var sum = dot(low_nibbles(words.x), x[0]) + dot(low_nibbles(words.x >> 16u), x[1]);
    sum += dot(low_nibbles(words.y), x[2]) + dot(low_nibbles(words.y >> 16u), x[3]);
    sum += dot(low_nibbles(words.z), x[4]) + dot(low_nibbles(words.z >> 16u), x[5]);
    sum += dot(low_nibbles(words.w), x[6]) + dot(low_nibbles(words.w >> 16u), x[7]);
    return scale.x * sum + scale.y * x_sum;
}
