// Cached keys and values as bytes, four channels at a time: a row is its f32 scale and head_dim signed bytes.

@group(0) @binding(3) var<storage, read> k_ring: array<u32>;
@group(0) @binding(4) var<storage, read> v_ring: array<u32>;

const ROW_WORDS: u32 = HEAD_DIM4 + 1u;

fn channels(scale: u32, word: u32) -> vec4<f32> {
    let bytes = bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
    return bitcast<f32>(scale) * vec4<f32>(bytes);
}

fn ring_k(row: u32, channel4: u32) -> vec4<f32> {
    return channels(k_ring[row * ROW_WORDS], k_ring[row * ROW_WORDS + 1u + channel4]);
}

fn ring_v(row: u32, channel4: u32) -> vec4<f32> {
    return channels(v_ring[row * ROW_WORDS], v_ring[row * ROW_WORDS + 1u + channel4]);
}
