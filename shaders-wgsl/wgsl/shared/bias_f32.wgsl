// An f32 bias among the words of the weight file.

fn bias_of(at: u32, index: u32) -> f32 {
    return bitcast<f32>(words[at * WORDS_PER_PLACE + index]);
}
