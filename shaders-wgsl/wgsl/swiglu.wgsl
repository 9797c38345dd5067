// gate = silu(gate) * up, in place.
//
// gate, up  [len][dim] f32. Grid: (ceil(dim / 4 / 64), len); a thread handles four channels.
// Numerics: f32; exp is held below overflow, where silu is 0 to f32 anyway. Twin: reference/src/swiglu.rs.

@group(0) @binding(0) var<uniform> params: RowParams;
@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read_write> gate: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> up: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let dim4 = params.dim / 4u;
    if (id.y >= state.len || id.x >= dim4) {
        return;
    }
    let index = id.y * dim4 + id.x;
    let value = gate[index];
    gate[index] = value / (1.0 + exp(min(-value, vec4<f32>(80.0)))) * up[index];
}
