// Rows of quantized weights against one token whose inputs are codes, as outputs_codes leaves them: what rows_product of
// four_rows is to inputs in f32. Nothing goes through workgroup memory but sums, and no thread waits for another before
// the end. A norm's weights are in the codes; here the root of the mean square is found, by every set for itself.
//
// LANES threads share SET_ROWS rows and take neighboring groups of 32. Up to four of a thread's blocks are on their way at
// once, and the codes that they meet beside them: nothing waits behind a condition. Rows of so few blocks have no loop, by
// which drivers make much slower programs; where params are constants, so is every condition on the number of groups.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;

// Groups that a set takes at once.
const PASS: u32 = max(1u, 4u / SET_ROWS) * LANES;

struct Codes {
    bytes: array<vec2<u32>, 4>,
    steps: vec4<f32>,
    sum: f32,
    squares: f32,
}

struct PassSums {
    rows: vec4<f32>,
    squares: f32,
}

fn total(four: vec4<f32>) -> f32 {
    return (four.x + four.y) + (four.z + four.w);
}

fn load_codes(group: u32) -> Codes {
    let low = x[code_vector(BYTES, group)];
    let high = x[code_vector(BYTES + 1u, group)];
    let scales = x[code_vector(SCALES, group)];
    var squares = 0.0;
    if (NORM) {
        squares = total(bitcast<vec4<f32>>(x[code_vector(SQUARES, group)]));
    }
    return Codes(
        array<vec2<u32>, 4>(low.xy, low.zw, high.xy, high.zw),
        bitcast<vec4<f32>>(scales),
        total(bitcast<vec4<f32>>(scales << vec4<u32>(16u))),
        squares,
    );
}

fn dot_codes(block: Block, codes: Codes) -> f32 {
    let products = block_dot(block, codes.bytes);
    let sum = products.scale.x * dot(codes.steps, vec4<f32>(products.sums));
    if (HAS_OFFSET) {
        return sum + products.scale.y * codes.sum;
    }
    return sum;
}

// The groups from `first` on that a thread takes at once; past the end the last one again, without weight.
fn pass_sums(values_at: vec4<u32>, scales_at: vec4<u32>, groups: u32, first: u32) -> PassSums {
    let nth = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u) * LANES;
    let has = nth < vec4<u32>(groups);
    let at = min(nth, vec4<u32>(groups - 1u));
    var sums = PassSums(vec4<f32>(0.0), 0.0);
    let block_0 = load_block(values_at.x, scales_at.x, at.x);
    let codes_0 = load_codes(at.x);
    var block_1 = block_0;
    var block_2 = block_0;
    var block_3 = block_0;
    var codes_1 = codes_0;
    if (SET_ROWS < 4u && groups > LANES) {
        codes_1 = load_codes(at.y);
    }
    if (SET_ROWS == 1u) {
        var codes_2 = codes_0;
        var codes_3 = codes_0;
        if (groups > LANES) {
            block_1 = load_block(values_at.x, scales_at.x, at.y);
        }
        if (groups > 2u * LANES) {
            block_2 = load_block(values_at.x, scales_at.x, at.z);
            codes_2 = load_codes(at.z);
        }
        if (groups > 3u * LANES) {
            block_3 = load_block(values_at.x, scales_at.x, at.w);
            codes_3 = load_codes(at.w);
        }
        sums.rows.x = select(0.0, dot_codes(block_0, codes_0), has.x);
        if (groups > LANES) {
            sums.rows.x += select(0.0, dot_codes(block_1, codes_1), has.y);
        }
        if (groups > 2u * LANES) {
            sums.rows.x += select(0.0, dot_codes(block_2, codes_2), has.z);
            sums.squares += select(0.0, codes_2.squares, has.z);
        }
        if (groups > 3u * LANES) {
            sums.rows.x += select(0.0, dot_codes(block_3, codes_3), has.w);
            sums.squares += select(0.0, codes_3.squares, has.w);
        }
    } else if (SET_ROWS == 2u) {
        block_1 = load_block(values_at.y, scales_at.y, at.x);
        if (groups > LANES) {
            block_2 = load_block(values_at.x, scales_at.x, at.y);
            block_3 = load_block(values_at.y, scales_at.y, at.y);
        }
        sums.rows.x = select(0.0, dot_codes(block_0, codes_0), has.x);
        sums.rows.y = select(0.0, dot_codes(block_1, codes_0), has.x);
        if (groups > LANES) {
            sums.rows.x += select(0.0, dot_codes(block_2, codes_1), has.y);
            sums.rows.y += select(0.0, dot_codes(block_3, codes_1), has.y);
        }
    } else {
        block_1 = load_block(values_at.y, scales_at.y, at.x);
        block_2 = load_block(values_at.z, scales_at.z, at.x);
        block_3 = load_block(values_at.w, scales_at.w, at.x);
        let rows = vec4<f32>(
            dot_codes(block_0, codes_0),
            dot_codes(block_1, codes_0),
            dot_codes(block_2, codes_0),
            dot_codes(block_3, codes_0),
        );
        sums.rows = select(vec4<f32>(0.0), rows, has.x);
    }
    sums.squares += select(0.0, codes_0.squares, has.x);
    if (SET_ROWS < 4u && groups > LANES) {
        sums.squares += select(0.0, codes_1.squares, has.y);
    }
    return sums;
}

// The sums of the rows that begin at these indices, as many of them as a set has, divided by the root of the mean square
// where there is a norm. Only lane 0 of a set gets them.
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
    let lane = thread % LANES;
    var sums = pass_sums(values_at, scales_at, groups, lane);
    if (groups > PASS) {
        for (var first = lane + PASS; first < groups; first += PASS) {
            let more = pass_sums(values_at, scales_at, groups, first);
            sums.rows += more.rows;
            sums.squares += more.squares;
        }
    }
    let all = set_sums(thread, own_rows(sums.rows), sums.squares);
    if (NORM) {
        return all_rows(all.sums * (1.0 / sqrt(all.squares / f32(cols) + eps)));
    }
    return all_rows(all.sums);
}
