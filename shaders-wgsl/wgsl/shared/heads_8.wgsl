// One value for each query head that a workgroup of decode attention serves: five to eight heads. Where there are
// fewer than eight, the last one is computed several times and stored once.

alias Heads = mat2x4<f32>;

const HEADS_WIDTH: u32 = 8u;
// Keys of a round that a thread has a part of: half as many as of fewer heads, for the same workgroup memory.
const KEYS_PER_LANE: u32 = 2u;

fn all_heads(value: f32) -> Heads {
    return Heads(vec4<f32>(value), vec4<f32>(value));
}

// One head's part of what lies in workgroup memory. Where a component is picked from memory, no vector has to be.
fn share_of_head(slot: u32, head: u32) -> f32 {
    return shares[slot][head / 4u][head % 4u];
}

fn lane_sum_of_head(lane: u32, head: u32) -> f32 {
    return lane_sums[lane][head / 4u][head % 4u];
}

// Four channels of every head's query.
fn load_queries(first_head: u32, channel4: u32) -> array<Heads, 4> {
    let at = first_head * HEAD_DIM4 + channel4;
    let last = HEADS_PER_ITEM - 1u;
    let low = transpose(mat4x4<f32>(q[at], q[at + HEAD_DIM4], q[at + 2u * HEAD_DIM4], q[at + 3u * HEAD_DIM4]));
    let high = transpose(mat4x4<f32>(
        q[at + 4u * HEAD_DIM4],
        q[at + min(5u, last) * HEAD_DIM4],
        q[at + min(6u, last) * HEAD_DIM4],
        q[at + last * HEAD_DIM4],
    ));
    return array<Heads, 4>(
        Heads(low[0], high[0]),
        Heads(low[1], high[1]),
        Heads(low[2], high[2]),
        Heads(low[3], high[3]),
    );
}

fn heads_max(a: Heads, b: Heads) -> Heads {
    return Heads(max(a[0], b[0]), max(a[1], b[1]));
}

fn heads_exp(values: Heads) -> Heads {
    return Heads(exp(values[0]), exp(values[1]));
}

fn heads_product(a: Heads, b: Heads) -> Heads {
    return Heads(a[0] * b[0], a[1] * b[1]);
}
