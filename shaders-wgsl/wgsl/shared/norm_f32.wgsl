// A norm's f32 weights among the words of the weight file.

const NORM: bool = true;

fn norm4(at: u32, col4: u32) -> vec4<f32> {
    let word = at * WORDS_PER_PLACE + 4u * col4;
    return bitcast<vec4<f32>>(vec4<u32>(words[word], words[word + 1u], words[word + 2u], words[word + 3u]));
}
