// Rows of quantized weights against one token whose inputs are codes: bytes and their scales, as outputs_codes leaves
// them. What rows_product of four_rows is to inputs in f32, without a norm and for one row a set: nothing goes through
// workgroup memory but sums, and no thread waits for another before the end.
//
// LANES threads share a row and take neighboring groups of 32. Up to four of a thread's blocks are on their way at once.

@group(0) @binding(1) var<storage, read> state: StepState;
// Of 32 columns three vectors: bytes of the first CODE_GROUP and of the others, and of either half a step and a sum.
@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;

const NORM: bool = false;

fn dot_codes(block: Block, group: u32) -> f32 {
    let low = x[3u * group];
    let high = x[3u * group + 1u];
    let scales = bitcast<vec4<f32>>(x[3u * group + 2u]);
    let dot = block_dot(block, array<vec2<u32>, 4>(low.xy, low.zw, high.xy, high.zw));
    let product = dot.scale.x * (scales.x * f32(dot.sums.x) + scales.z * f32(dot.sums.y));
    if (HAS_OFFSET) {
        return product + dot.scale.y * (scales.y + scales.w);
    }
    return product;
}

// The sum of the row that begins at these indices is .x of the result. Only lane 0 of a set gets it.
fn rows_product(
    thread: u32,
    values_at: vec4<u32>,
    scales_at: vec4<u32>,
    cols: u32,
    first_input: u32,
    norm_at: u32,
    eps: f32,
) -> vec4<f32> {
    let groups = cols / QUANT_GROUP;
    let last = groups - 1u;
    var sum = 0.0;
    for (var group = thread % LANES; group < groups; group += 4u * LANES) {
        let next = vec3<u32>(group) + vec3<u32>(1u, 2u, 3u) * LANES;
        let block_0 = load_block(values_at.x, scales_at.x, group);
        // Where cols is a constant, so is each of these conditions.
        var block_1 = block_0;
        var block_2 = block_0;
        var block_3 = block_0;
        if (groups > LANES) {
            block_1 = load_block(values_at.x, scales_at.x, min(next.x, last));
        }
        if (groups > 2u * LANES) {
            block_2 = load_block(values_at.x, scales_at.x, min(next.y, last));
        }
        if (groups > 3u * LANES) {
            block_3 = load_block(values_at.x, scales_at.x, min(next.z, last));
        }
        sum += dot_codes(block_0, group);
        if (groups > LANES) {
            sum += select(0.0, dot_codes(block_1, min(next.x, last)), next.x < groups);
        }
        if (groups > 2u * LANES) {
            sum += select(0.0, dot_codes(block_2, min(next.y, last)), next.y < groups);
        }
        if (groups > 3u * LANES) {
            sum += select(0.0, dot_codes(block_3, min(next.z, last)), next.z < groups);
        }
    }
    return all_rows(set_sums(thread, sum, 0.0).sums);
}
