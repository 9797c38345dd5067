// Cached keys and values as bytes: a row is its f32 scale and head_dim signed bytes.

@group(0) @binding(3) var<storage, read> k_ring: array<u32>;
@group(0) @binding(4) var<storage, read> v_ring: array<u32>;

const ROW_WORDS: u32 = HEAD_DIM4 + 1u;

// Eight channels and their scale.
struct KvWords {
    scale: u32,
    low: u32,
    high: u32,
}

fn channels(scale: u32, word: u32) -> vec4<f32> {
    let bytes = bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
    return bitcast<f32>(scale) * vec4<f32>(bytes);
}

fn low_channels(words: KvWords) -> vec4<f32> {
    return channels(words.scale, words.low);
}

fn high_channels(words: KvWords) -> vec4<f32> {
    return channels(words.scale, words.high);
}

fn load_k(row: u32, channel8: u32) -> KvWords {
    let at = row * ROW_WORDS;
    return KvWords(k_ring[at], k_ring[at + 1u + 2u * channel8], k_ring[at + 2u + 2u * channel8]);
}

fn load_v(row: u32, channel8: u32) -> KvWords {
    let at = row * ROW_WORDS;
    return KvWords(v_ring[at], v_ring[at + 1u + 2u * channel8], v_ring[at + 2u + 2u * channel8]);
}
