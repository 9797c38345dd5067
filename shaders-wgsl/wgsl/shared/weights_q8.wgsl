// A q8 weight piece: 32 signed bytes to a group, then f16 scales, two to a u32; w = scale * q. cols is a
// multiple of 32.

@group(0) @binding(3) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> scales: array<u32>;

const HAS_TAIL: bool = false;

fn bytes4(word: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

fn scale_of(group: u32) -> f32 {
    let pair = unpack2x16float(scales[group / 2u]);
    return select(pair.x, pair.y, group % 2u == 1u);
}

// Four weights of a row, from column 4 * col4 on.
fn weight4(row: u32, col4: u32, cols: u32) -> vec4<f32> {
    let word = values[row * (cols / 16u) + col4 / 4u][col4 % 4u];
    return scale_of(row * (cols / QUANT_GROUP) + col4 / 8u) * bytes4(word);
}

// Eight weights as they are stored, and their scale.
struct Stored {
    first: u32,
    last: u32,
    scale: f32,
}

// A quarter of a group of a row.
fn load_quarter(row: u32, group: u32, quarter: u32, cols: u32) -> Stored {
    let index = row * (cols / QUANT_GROUP) + group;
    let at = 2u * index + quarter / 2u;
    let word = 2u * (quarter % 2u);
    return Stored(values[at][word], values[at][word + 1u], scale_of(index));
}

fn first_four(stored: Stored) -> vec4<f32> {
    return stored.scale * bytes4(stored.first);
}

fn last_four(stored: Stored) -> vec4<f32> {
    return stored.scale * bytes4(stored.last);
}

// Dot product of one group of a row with the 32 inputs x; the sum of x is of use to q4 only.
fn dot_group(row: u32, group: u32, cols: u32, x: array<vec4<f32>, 8>, x_sum: f32) -> f32 {
    let index = row * (cols / QUANT_GROUP) + group;
    let low = values[2u * index];
    let high = values[2u * index + 1u];
    var sum = dot(bytes4(low.x), x[0]) + dot(bytes4(low.y), x[1]);
    sum += dot(bytes4(low.z), x[2]) + dot(bytes4(low.w), x[3]);
    sum += dot(bytes4(high.x), x[4]) + dot(bytes4(high.y), x[5]);
    sum += dot(bytes4(high.z), x[6]) + dot(bytes4(high.w), x[7]);
    return scale_of(index) * sum;
}
