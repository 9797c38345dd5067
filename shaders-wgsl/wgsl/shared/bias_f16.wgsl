// An f16 bias among the words of the weight file.

fn bias_of(at: u32, index: u32) -> f32 {
    let pair = unpack2x16float(words[at * WORDS_PER_PLACE + index / 2u]);
    return select(pair.x, pair.y, index % 2u == 1u);
}
