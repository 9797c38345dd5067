// One value for each query head that a workgroup of decode attention serves: three or four heads. Where there are
// three, the last one is computed twice and stored once.

alias Heads = vec4<f32>;

const HEADS_WIDTH: u32 = 4u;
// Keys of a round that a thread has a part of.
const KEYS_PER_LANE: u32 = 4u;

fn all_heads(value: f32) -> Heads {
    return vec4<f32>(value);
}

// One head's part of what lies in workgroup memory. Where a component is picked from memory, no vector has to be.
fn share_of_head(slot: u32, head: u32) -> f32 {
    return shares[slot][head];
}

fn lane_sum_of_head(lane: u32, head: u32) -> f32 {
    return lane_sums[lane][head];
}

// Four channels of every head's query.
fn load_queries(first_head: u32, channel4: u32) -> array<Heads, 4> {
    let at = first_head * HEAD_DIM4 + channel4;
    let last = at + (HEADS_PER_ITEM - 1u) * HEAD_DIM4;
    let heads = transpose(mat4x4<f32>(q[at], q[at + HEAD_DIM4], q[at + 2u * HEAD_DIM4], q[last]));
    return array<Heads, 4>(heads[0], heads[1], heads[2], heads[3]);
}

fn heads_max(a: Heads, b: Heads) -> Heads {
    return max(a, b);
}

fn heads_exp(values: Heads) -> Heads {
    return exp(values);
}

fn heads_product(a: Heads, b: Heads) -> Heads {
    return a * b;
}
