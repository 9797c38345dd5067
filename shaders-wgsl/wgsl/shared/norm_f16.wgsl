// A norm's f16 weights among the words of the weight file.

const NORM: bool = true;

fn norm4(at: u32, col4: u32) -> vec4<f32> {
    let word = at * WORDS_PER_PLACE + 2u * col4;
    return vec4<f32>(unpack2x16float(words[word]), unpack2x16float(words[word + 1u]));
}
