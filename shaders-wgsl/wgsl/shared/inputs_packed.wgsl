// The inputs of four_rows as packed bytes: rounded to 1/127 of the largest in their group of 32 columns. Products and sums
// of a group are exact; what all weights of a group have in common meets the exact sum of the inputs.

// Four quarters more than groups, so that those that come in together fall into different banks.
const TILE_STRIDE: u32 = TILE_GROUPS + 4u;

// [quarter of a group][group]
var<workgroup> tile: array<vec2<u32>, 4u * TILE_STRIDE>;
// Of each group the size of a step, and the sum.
var<workgroup> tile_scales: array<vec2<f32>, TILE_GROUPS>;
// Largest and sum of each thread's eight inputs, a quarter of a group.
var<workgroup> quarters: array<vec2<f32>, THREADS>;

// Of a thread's two vectors of a tile the first; the other one is VECTOR_STEP further.
fn first_vector(thread: u32) -> u32 {
    return 2u * thread;
}

const VECTOR_STEP: u32 = 1u;

fn announce_inputs(thread: u32, a: vec4<f32>, b: vec4<f32>) {
    let largest = max(abs(a), abs(b));
    let sum = a + b;
    quarters[thread] = vec2<f32>(
        max(max(largest.x, largest.y), max(largest.z, largest.w)),
        (sum.x + sum.y) + (sum.z + sum.w),
    );
}

fn store_inputs(thread: u32, a: vec4<f32>, b: vec4<f32>) {
    let quarter = thread % 4u;
    let group = thread / 4u;
    let first = quarters[4u * group];
    let second = quarters[4u * group + 1u];
    let third = quarters[4u * group + 2u];
    let last = quarters[4u * group + 3u];
    let largest = max(max(first.x, second.x), max(third.x, last.x));
    let factor = select(127.0 / largest, 0.0, largest < 1.0e-30);
    tile[quarter * TILE_STRIDE + group] =
        vec2<u32>(packed_bytes(factor * first_inputs(a, b)), packed_bytes(factor * last_inputs(a, b)));
    if (quarter == 0u) {
        tile_scales[group] = vec2<f32>(largest / 127.0, (first.y + second.y) + (third.y + last.y));
    }
}

struct GroupInputs {
    quarters: array<vec2<u32>, 4>,
    scale: vec2<f32>,
}

fn load_group(group: u32) -> GroupInputs {
    let own = array<vec2<u32>, 4>(
        tile[group],
        tile[TILE_STRIDE + group],
        tile[2u * TILE_STRIDE + group],
        tile[3u * TILE_STRIDE + group],
    );
    return GroupInputs(own, tile_scales[group]);
}

fn dot_inputs(block: Block, cols: u32, group: u32, inputs: GroupInputs) -> f32 {
    let dot = block_dot(block, inputs.quarters);
    let product = inputs.scale.x * dot.scale.x * f32(dot.sums.x + dot.sums.y);
    if (HAS_OFFSET) {
        return product + inputs.scale.y * dot.scale.y;
    }
    return product;
}
