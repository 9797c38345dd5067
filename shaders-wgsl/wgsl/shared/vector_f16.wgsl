// A vector of f16 values, two to a u32: a norm's weights or a bias.

@group(0) @binding(6) var<storage, read> vector: array<u32>;

fn vector_at(index: u32) -> f32 {
    let pair = unpack2x16float(vector[index / 2u]);
    return select(pair.x, pair.y, index % 2u == 1u);
}
