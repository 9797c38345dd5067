// Joins the partial results of decode attention: softmax over all parts of a head's keys.
//
// partials  rows of head_dim values (weighted sums of V), row_max, row_sum
// heads  where each query head's partials lie            y  [heads][head_dim] f32
// Grid: (heads); a workgroup of 64 handles one query head. An empty part has row_sum 0 and a row_max that no
// score reaches. Numerics: f32. Twin: reference/src/merge_lse.rs.

@group(0) @binding(2) var<storage, read> partials: array<f32>;
@group(0) @binding(3) var<storage, read> heads: array<HeadParts>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const PARTIAL: u32 = HEAD_DIM + 2u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = heads[group.x];
    var row_max = UNSEEN;
    for (var part = 0u; part < head.parts; part += 1u) {
        row_max = max(row_max, partials[(head.first + part * head.stride) * PARTIAL + HEAD_DIM]);
    }
    for (var channel = thread; channel < HEAD_DIM; channel += 64u) {
        var sum = 0.0;
        var row_sum = 0.0;
        for (var part = 0u; part < head.parts; part += 1u) {
            let at = (head.first + part * head.stride) * PARTIAL;
            let weight = exp(partials[at + HEAD_DIM] - row_max);
            sum += weight * partials[at + channel];
            row_sum += weight * partials[at + HEAD_DIM + 1u];
        }
        y[group.x * HEAD_DIM + channel] = sum / row_sum;
    }
}
