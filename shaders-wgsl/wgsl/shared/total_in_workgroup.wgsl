// The sum over a workgroup of 64, through workgroup memory.

var<workgroup> partial: array<f32, 64>;
var<workgroup> eighths: array<f32, 8>;

fn total_of(thread: u32, value: f32) -> f32 {
    partial[thread] = value;
    workgroupBarrier();
    if (thread < 8u) {
        var eighth = 0.0;
        for (var index = 0u; index < 8u; index += 1u) {
            eighth += partial[thread * 8u + index];
        }
        eighths[thread] = eighth;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var index = 0u; index < 8u; index += 1u) {
        total += eighths[index];
    }
    return total;
}
