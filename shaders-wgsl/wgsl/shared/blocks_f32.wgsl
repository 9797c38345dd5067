// f32 weights for the fused kernels. cols is a multiple of 4.

@group(0) @binding(3) var<storage, read> values: array<vec4<f32>>;

const VALUES_PER_PLACE: u32 = PLACE_BYTES / 16u;

fn weight4(at: u32) -> vec4<f32> {
    return values[at];
}
