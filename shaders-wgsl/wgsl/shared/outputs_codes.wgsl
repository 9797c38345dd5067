// The outputs as codes, for the product that takes them in: rounded to 1/127 of the largest of their 16. Of 32 columns
// twelve words: 32 bytes in the order of the weights', then of either half the size of a step and the exact sum.

@group(0) @binding(4) var<storage, read_write> y: array<vec2<u32>>;

var<workgroup> outputs: array<vec4<f32>, OUTPUTS / 4u>;

// One of the workgroup's outputs, by whoever has it.
fn keep(slot: u32, index: u32, value: f32) {
    outputs[slot / 4u][slot % 4u] = value;
}

// Once the workgroup has kept all that it has, those from column `first` on: writes the codes of those before `end`. Both
// are multiples of 16.
fn finish(thread: u32, first: u32, end: u32) {
    workgroupBarrier();
    let half = first / 16u + thread / 2u;
    if (thread >= OUTPUTS / 8u || 16u * half >= end) {
        return;
    }
    // Two threads a half, and both find its largest.
    let four = 4u * (thread / 2u);
    let a = outputs[four];
    let b = outputs[four + 1u];
    let c = outputs[four + 2u];
    let d = outputs[four + 3u];
    let sizes = max(max(abs(a), abs(b)), max(abs(c), abs(d)));
    let largest = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    let sums = (a + b) + (c + d);
    let factor = select(127.0 / largest, 0.0, largest < 1.0e-30);
    let even = thread % 2u == 0u;
    let low = factor * select(c, a, even);
    let high = factor * select(d, b, even);
    let at = 6u * (half / 2u) + 2u * (half % 2u);
    y[at + thread % 2u] = vec2<u32>(packed_bytes(first_inputs(low, high)), packed_bytes(last_inputs(low, high)));
    if (even) {
        let sum = (sums.x + sums.y) + (sums.z + sums.w);
        y[6u * (half / 2u) + 4u + half % 2u] = bitcast<vec2<u32>>(vec2<f32>(largest / 127.0, sum));
    }
}
