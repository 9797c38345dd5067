// One value for each query head that a workgroup of decode attention serves: one head.

alias Heads = f32;

const HEADS_WIDTH: u32 = 1u;

// One head's part of what lies in workgroup memory. Where a component is picked from memory, no vector has to be.
fn share_of_head(slot: u32, head: u32) -> f32 {
    return shares[slot];
}

fn lane_of_head(lane: u32, head: u32) -> f32 {
    return lanes[lane];
}

// Four channels of every head's query.
fn load_queries(first_head: u32, channel4: u32) -> array<Heads, 4> {
    let a = q[first_head * HEAD_DIM4 + channel4];
    return array<Heads, 4>(a.x, a.y, a.z, a.w);
}
