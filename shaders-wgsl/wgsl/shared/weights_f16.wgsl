// An f16 weight piece, two values to a u32. cols is a multiple of 4.

@group(0) @binding(3) var<storage, read> values: array<vec2<u32>>;

// Four weights of a row, from column 4 * col4 on; 0 past the end of the row.
fn weight4(row: u32, col4: u32, cols: u32) -> vec4<f32> {
    if (col4 >= cols / 4u) {
        return vec4<f32>(0.0);
    }
    let word = values[row * (cols / 4u) + col4];
    return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y));
}
