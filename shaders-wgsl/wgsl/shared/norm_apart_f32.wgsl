// A norm's f32 weights in a buffer of their own.

@group(0) @binding(6) var<storage, read> vector: array<vec4<f32>>;

const NORM: bool = true;

fn norm4(at: u32, col4: u32) -> vec4<f32> {
    return vector[col4];
}
