// Cached keys and values as f16: a row of head_dim halves a key.

@group(0) @binding(3) var<storage, read> k_ring: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> v_ring: array<vec4<u32>>;

// Eight channels.
alias KvWords = vec4<u32>;

fn low_channels(words: KvWords) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn high_channels(words: KvWords) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w));
}

fn load_k(row: u32, channel8: u32) -> KvWords {
    return k_ring[row * HEAD_DIM8 + channel8];
}

fn load_v(row: u32, channel8: u32) -> KvWords {
    return v_ring[row * HEAD_DIM8 + channel8];
}
