// One value for each query head that a workgroup of decode attention serves: up to four heads. Where there are
// fewer, the last ones are computed for nobody.

alias Heads = vec4<f32>;

const HEADS_WIDTH: u32 = 4u;

// One head's part of what lies in workgroup memory. Where a component is picked from memory, no vector has to be.
fn share_of_head(slot: u32, head: u32) -> f32 {
    return shares[slot][head];
}

fn lane_of_head(lane: u32, head: u32) -> f32 {
    return lanes[lane][head];
}

// Four channels of every head's query.
fn load_queries(first_head: u32, channel4: u32) -> array<Heads, 4> {
    let last = (first_head / GQA_GROUP) * GQA_GROUP + (GQA_GROUP - 1u);
    let head = min(vec4<u32>(first_head) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    let at = head * HEAD_DIM4 + channel4;
    let heads = transpose(mat4x4<f32>(q[at.x], q[at.y], q[at.z], q[at.w]));
    return array<Heads, 4>(heads[0], heads[1], heads[2], heads[3]);
}
