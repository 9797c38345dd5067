// K and V of the token in flight go straight to their slot. The key that sat there is a whole ring older and so
// outside every window. One token only: a second one could take a slot that the first may still read.

@group(0) @binding(8) var<storage, read> spans: array<HeadSpan>;

fn kv_row(kv_head: u32, token: u32, position: u32) -> u32 {
    return ring_row(spans[kv_head], position);
}
