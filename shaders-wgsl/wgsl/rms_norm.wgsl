// y = x / sqrt(mean(x^2) + eps) * weight, token by token.
//
// x  [len][dim] f32            vector  [dim] weights           y  [len][dim] f32; with last_only [dim]
// Grid: (1, tokens); a workgroup of 64 handles one token. dim is a multiple of 4.
// Numerics: f32 sums, 64 partial sums added in a fixed order. Twin: reference/src/rms_norm.rs.

@group(0) @binding(0) var<uniform> params: RowParams;
@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (group.y >= state.len) {
        return;
    }
    let dim4 = params.dim / 4u;
    let token = select(group.y, state.len - 1u, params.last_only == 1u);
    let from_row = token * dim4;
    let to_row = group.y * dim4;

    var sum = 0.0;
    for (var index = thread; index < dim4; index += 64u) {
        let value = x[from_row + index];
        sum += dot(value, value);
    }
    let scale = 1.0 / sqrt(total_of(thread, sum) / f32(params.dim) + params.eps);
    for (var index = thread; index < dim4; index += 64u) {
        let channel = index * 4u;
        let weight = vec4<f32>(
            vector_at(channel),
            vector_at(channel + 1u),
            vector_at(channel + 2u),
            vector_at(channel + 3u),
        );
        y[to_row + index] = x[from_row + index] * scale * weight;
    }
}
