// How the keys that a query sees are cut into the parts of decode attention's work list.

// Keys that the query at q_pos sees: those of the sink, then those of the window.
fn visible_keys(span: HeadSpan, q_pos: u32) -> u32 {
    let causal = q_pos + 1u;
    let local_start = window_start(span, q_pos);
    return min(span.sink, causal) + (max(causal, local_start) - local_start);
}

// Keys of every part but the last one that has any: whole rounds, so that few keys make few parts.
fn keys_per_part(visible: u32, parts: u32) -> u32 {
    let share = (visible + parts - 1u) / parts;
    return ((share + DECODE_ROUND - 1u) / DECODE_ROUND) * DECODE_ROUND;
}
