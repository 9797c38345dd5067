// A vector of f32 values: a norm's weights or a bias.

@group(0) @binding(6) var<storage, read> vector: array<f32>;

fn vector_at(index: u32) -> f32 {
    return vector[index];
}
