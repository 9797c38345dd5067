// The bytes of `values` again, as words: for scales, norms and biases.

@group(0) @binding(5) var<storage, read> words: array<u32>;

const WORDS_PER_PLACE: u32 = PLACE_BYTES / 4u;
