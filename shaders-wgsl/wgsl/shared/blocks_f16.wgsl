// f16 weights, two to a u32, for the fused kernels. cols is a multiple of 4.

@group(0) @binding(3) var<storage, read> values: array<vec2<u32>>;

const VALUES_PER_PLACE: u32 = PLACE_BYTES / 8u;

fn weight4(at: u32) -> vec4<f32> {
    let pair = values[at];
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
