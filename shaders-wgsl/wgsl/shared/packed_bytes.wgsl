// Values rounded to bytes, and four of these in a word.

fn rounded(values: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(vec4<i32>(round(values))) & vec4<u32>(255u);
}

fn packed(bytes: vec4<u32>) -> u32 {
    return (bytes.x | (bytes.y << 8u)) | ((bytes.z << 16u) | (bytes.w << 24u));
}
