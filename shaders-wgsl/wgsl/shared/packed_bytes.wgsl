// Products of packed bytes.

fn packed_bytes(values: vec4<f32>) -> u32 {
    let bytes = bitcast<vec4<u32>>(vec4<i32>(round(values))) & vec4<u32>(255u);
    return (bytes.x | (bytes.y << 8u)) | ((bytes.z << 16u) | (bytes.w << 24u));
}

// Of eight columns.
fn dot8(a: vec2<u32>, b: vec2<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y);
}
