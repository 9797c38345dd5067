// The outputs as codes, for the product that takes them in: rounded to 1/127 of the largest of their CODE_GROUP.
// Of 32 columns twelve words: 32 bytes in the order of the weights', then of either half the size of a step and the exact
// sum. NaN among the outputs is a step of NaN: a code of 0 is NaN then too.

@group(0) @binding(4) var<storage, read_write> y: array<vec2<u32>>;

var<workgroup> outputs: array<f32, OUTPUTS>;

// One of the workgroup's outputs, by whoever has it.
fn keep(slot: u32, index: u32, value: f32) {
    outputs[slot] = value;
}

fn four_outputs(first: u32) -> vec4<f32> {
    return vec4<f32>(outputs[first], outputs[first + 1u], outputs[first + 2u], outputs[first + 3u]);
}

// Once the workgroup has kept all that it has, those from column `first` on: writes the codes of those before `end`. Both
// are multiples of CODE_GROUP.
fn finish(thread: u32, first: u32, end: u32) {
    workgroupBarrier();
    let half = first / CODE_GROUP + thread / 2u;
    if (thread >= OUTPUTS / 8u || CODE_GROUP * half >= end) {
        return;
    }
    // Two threads a half, and both find its largest.
    let own = CODE_GROUP * (thread / 2u);
    let a = four_outputs(own);
    let b = four_outputs(own + 4u);
    let c = four_outputs(own + 8u);
    let d = four_outputs(own + 12u);
    let sizes = max(max(abs(a), abs(b)), max(abs(c), abs(d)));
    let largest = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    let sums = (a + b) + (c + d);
    let sum = (sums.x + sums.y) + (sums.z + sums.w);
    let factor = select(127.0 / largest, 0.0, largest < 1.0e-30);
    let even = thread % 2u == 0u;
    let low = factor * select(c, a, even);
    let high = factor * select(d, b, even);
    let at = 6u * (half / 2u) + 2u * (half % 2u);
    y[at + thread % 2u] = vec2<u32>(packed_bytes(first_inputs(low, high)), packed_bytes(last_inputs(low, high)));
    if (even) {
        // The largest of values among which there is NaN may be any of them: their sum tells.
        let broken = (bitcast<u32>(sum) & 0x7fffffffu) > 0x7f800000u;
        let step = select(largest / 127.0, sum, broken);
        y[6u * (half / 2u) + 4u + half % 2u] = bitcast<vec2<u32>>(vec2<f32>(step, sum));
    }
}
