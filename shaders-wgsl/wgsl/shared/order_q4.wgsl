// Eight q4 weights as signed bytes, those of even columns first.

// 16 (q - 8): the nibbles in the upper halves of bytes, their highest bit turned over.
fn spread(word: u32) -> vec2<u32> {
    let turned = word ^ 0x88888888u;
    return vec2<u32>(turned << 4u, turned) & vec2<u32>(0xf0f0f0f0u);
}

const HAS_OFFSET: bool = true;

// What such a byte is multiplied with and what is added, from the f16 scale and minimum of a group.
fn scale_and_offset_of(pair: u32) -> vec2<f32> {
    let scale = unpack2x16float(pair);
    return vec2<f32>(0.0625 * scale.x, scale.y + 8.0 * scale.x);
}
