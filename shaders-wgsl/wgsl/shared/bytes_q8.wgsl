// A quarter of a group as bytes, over load_quarter of weights_q8.

fn bytes_of(stored: Stored) -> vec2<u32> {
    return vec2<u32>(stored.first, stored.last);
}

fn scale_and_offset(stored: Stored) -> vec2<f32> {
    return vec2<f32>(stored.scale, 0.0);
}
