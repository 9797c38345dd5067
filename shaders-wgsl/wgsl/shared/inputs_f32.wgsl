// The inputs of four_rows as they are: a tile of 2,048 columns, [vector of a group][group], so that neighboring lanes,
// which take neighboring groups, read neighboring vectors.

// One vector more than groups, so that a group's vectors fall into different banks.
const TILE_STRIDE: u32 = TILE_GROUPS + 1u;

var<workgroup> tile: array<vec4<f32>, 8u * TILE_STRIDE>;

// Of a thread's two vectors of a tile the first; the other one is VECTOR_STEP further.
fn first_vector(thread: u32) -> u32 {
    return thread;
}

const VECTOR_STEP: u32 = THREADS;

// Before a tile may be overwritten: there is nothing to agree on.
fn announce_inputs(thread: u32, a: vec4<f32>, b: vec4<f32>) {
}

fn store_inputs(thread: u32, a: vec4<f32>, b: vec4<f32>) {
    let slot = (thread % 8u) * TILE_STRIDE + thread / 8u;
    tile[slot] = a;
    tile[slot + THREADS / 8u] = b;
}

struct GroupInputs {
    vectors: array<vec4<f32>, 8>,
    sum: f32,
}

fn load_group(group: u32) -> GroupInputs {
    let vectors = array<vec4<f32>, 8>(
        tile[group],
        tile[TILE_STRIDE + group],
        tile[2u * TILE_STRIDE + group],
        tile[3u * TILE_STRIDE + group],
        tile[4u * TILE_STRIDE + group],
        tile[5u * TILE_STRIDE + group],
        tile[6u * TILE_STRIDE + group],
        tile[7u * TILE_STRIDE + group],
    );
    let total = ((vectors[0] + vectors[1]) + (vectors[2] + vectors[3]))
        + ((vectors[4] + vectors[5]) + (vectors[6] + vectors[7]));
    return GroupInputs(vectors, (total.x + total.y) + (total.z + total.w));
}

fn dot_inputs(block: Block, cols: u32, group: u32, inputs: GroupInputs) -> f32 {
    return dot_block(block, cols, group, inputs.vectors, inputs.sum);
}
