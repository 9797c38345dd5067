// The outputs as codes, for the product that takes them in: whole numbers of steps, of which the largest of their CODE_GROUP
// has 125 to 127, in the order of either type of weights. A step is a little more than a 127th of the largest, so that its
// upper half leaves room for their sum; whatever the sum makes of its last digits, codes are multiples of it. NaN among
// the outputs is a step of NaN: a code of 0 is NaN then too.

@group(0) @binding(7) var<storage, read_write> codes: array<u32>;

const_assert OUTPUTS % CODE_GROUP == 0u;

var<workgroup> outputs: array<f32, OUTPUTS>;

// One of the workgroup's outputs, by whoever has it.
fn keep(slot: u32, index: u32, value: f32) {
    outputs[slot] = value;
}

fn four_outputs(first: u32, step: u32) -> vec4<f32> {
    return vec4<f32>(outputs[first], outputs[first + step], outputs[first + 2u * step], outputs[first + 3u * step]);
}

// Once the workgroup has kept all that it has, those from column `first` on: writes the codes of those before `end`. Both
// are multiples of CODE_GROUP. Eight threads have a group, and a word of it each: all of them find its scale, so that none
// waits for another.
fn finish(thread: u32, first: u32, end: u32) {
    workgroupBarrier();
    let own = (first + thread) / CODE_GROUP;
    let role = thread % CODE_GROUP;
    if (thread >= OUTPUTS || CODE_GROUP * own >= end) {
        return;
    }
    let at = thread - role;
    let a = four_outputs(at, 1u);
    let b = four_outputs(at + 4u, 1u);
    let sizes = max(abs(a), abs(b));
    let largest = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    let sums = a + b;
    let sum = (sums.x + sums.y) + (sums.z + sums.w);
    // The largest of values among which there is NaN may be any of them: their sum tells.
    let broken = (bitcast<u32>(sum) & 0x7fffffffu) > 0x7f800000u;
    let step = (bitcast<u32>(largest / 127.0) + 0xffffu) & 0xffff0000u;
    let scale = select(step | ((bitcast<u32>(sum) + 0x8000u) >> 16u), 0x7fc07fc0u, broken);
    let factor = select(1.0 / bitcast<f32>(scale), 0.0, largest < 1.0e-30);
    // Bytes in the order of q4 weights, even columns and odd ones, then in that of q8 weights.
    let natural = role / 2u;
    let four = four_outputs(at + role % 2u * select(1u, 4u, natural == 1u), select(2u, 1u, natural == 1u));
    var word = packed(rounded(factor * four));
    word = select(word, scale, role == SCALES);
    if (LEAVES) {
        word = select(word, bitcast<u32>(squares_of(at)), role == SQUARES);
    }
    let part = own % 4u;
    let plane = select(role, 2u * natural + part / 2u, role < SCALES);
    let component = select(part, 2u * (part % 2u) + role % 2u, role < SCALES);
    if (role < SQUARES || (LEAVES && role == SQUARES)) {
        codes[4u * code_vector(plane, own / 4u) + component] = word;
    }
}
