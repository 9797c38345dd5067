// One value for each query head that a workgroup of decode attention serves: two heads.

alias Heads = vec2<f32>;

const HEADS_WIDTH: u32 = 2u;

// One head's part of what lies in workgroup memory. Where a component is picked from memory, no vector has to be.
fn share_of_head(slot: u32, head: u32) -> f32 {
    return shares[slot][head];
}

fn lane_of_head(lane: u32, head: u32) -> f32 {
    return lanes[lane][head];
}

// Four channels of every head's query.
fn load_queries(first_head: u32, channel4: u32) -> array<Heads, 4> {
    let a = q[first_head * HEAD_DIM4 + channel4];
    let b = q[(first_head + 1u) * HEAD_DIM4 + channel4];
    return array<Heads, 4>(Heads(a.x, b.x), Heads(a.y, b.y), Heads(a.z, b.z), Heads(a.w, b.w));
}
