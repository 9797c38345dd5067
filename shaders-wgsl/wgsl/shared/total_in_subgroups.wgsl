// The sum over a workgroup of 64: within subgroups by exchange, the rest through workgroup memory.

const RUN: u32 = min(SUBGROUP, 64u);

var<workgroup> partial: array<f32, 64u / RUN>;

fn total_of(thread: u32, value: f32) -> f32 {
    var sum = value;
    for (var step = 1u; step < RUN; step *= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    if (thread % RUN == 0u) {
        partial[thread / RUN] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var index = 0u; index < 64u / RUN; index += 1u) {
        total += partial[index];
    }
    return total;
}
