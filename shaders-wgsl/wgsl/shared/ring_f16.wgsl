// Cached keys and values as f16, four channels at a time.

@group(0) @binding(3) var<storage, read> k_ring: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> v_ring: array<vec2<u32>>;

fn ring_k(row: u32, channel4: u32) -> vec4<f32> {
    return unpack(k_ring[row * HEAD_DIM4 + channel4]);
}

fn ring_v(row: u32, channel4: u32) -> vec4<f32> {
    return unpack(v_ring[row * HEAD_DIM4 + channel4]);
}
