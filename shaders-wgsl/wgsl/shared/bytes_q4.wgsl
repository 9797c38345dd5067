// A quarter of a group as bytes, over load_quarter of weights_q4.

fn bytes_of(stored: Stored) -> vec2<u32> {
    return spread(stored.word);
}

fn scale_and_offset(stored: Stored) -> vec2<f32> {
    return scale_and_offset_of(stored.scale);
}
