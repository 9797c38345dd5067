// Gathers the embedding rows of the tokens in flight, for those tokens whose row lies in the pieces of this binding.
//
// tokens  [len] ids            values, words  the binding, as vectors and as words: pieces of [piece_rows][cols]
// y  [len][cols] f32
// Grid: (ceil(cols / 4 / 64), len); a thread writes four channels of one token. A token of another binding is
// left alone, so one dispatch a binding fills every row once.
// Numerics: dequantized in f32. Twin: reference/src/embedding.rs.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    let col4 = id.x;
    if (token >= state.len || col4 >= params.cols / 4u) {
        return;
    }
    let row = tokens[token];
    if (row < params.row_offset || row - params.row_offset >= params.rows) {
        return;
    }
    let places = places_of(vec4<u32>(row - params.row_offset));
    y[token * (params.cols / 4u) + col4] = four_of_row(places.values_at.x, places.scales_at.x, col4);
}
