// What a KV head sees and where its keys lie: moa_mask::HeadMask and moa_mask::RingLayout, in WGSL.
// Positions are absolute; kernels ask these functions and never keep a mask.

// First position of the window of the query at q_pos, never below the sink.
fn window_start(span: HeadSpan, q_pos: u32) -> u32 {
    let causal = q_pos + 1u;
    return max(select(0u, causal - span.window, causal > span.window), span.sink);
}

// Whether the query at q_pos sees each of four keys.
fn attends(span: HeadSpan, q_pos: u32, k_pos: vec4<u32>) -> vec4<bool> {
    let query = vec4<u32>(q_pos);
    let near = (query - k_pos) < vec4<u32>(span.window);
    return (k_pos <= query) & ((k_pos < vec4<u32>(span.sink)) | near);
}

// The row of the layer's K and V buffers in which the key at k_pos lies.
fn ring_row(span: HeadSpan, k_pos: u32) -> u32 {
    var slot = k_pos;
    if (k_pos >= span.sink && span.ring > 0u) {
        slot = span.sink + (k_pos - span.sink) % span.ring;
    }
    return span.slot_offset + slot;
}
