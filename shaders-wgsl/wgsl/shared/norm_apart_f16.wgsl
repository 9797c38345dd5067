// A norm's f16 weights in a buffer of their own.

@group(0) @binding(6) var<storage, read> vector: array<vec2<u32>>;

const NORM: bool = true;

fn norm4(at: u32, col4: u32) -> vec4<f32> {
    let pairs = vector[col4];
    return vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}
