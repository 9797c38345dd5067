// The largest logit of each part, on every core: what argmax chooses from.
//
// logits  [dim] f32, the buffer whole vectors
// best  [ARGMAX_PARTS] of each part the largest logit's bits and its id, the smallest among equals
// Grid: (ARGMAX_PARTS); workgroups of 256 take vectors in turn. Numerics: comparisons only; NaN is never the largest.

@group(0) @binding(0) var<uniform> params: RowParams;
@group(0) @binding(2) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> best: array<vec2<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    var value = UNSEEN;
    var id = NOBODY;
    let vectors = (params.dim + 3u) / 4u;
    for (var index = group.x * THREADS + thread; index < vectors; index += ARGMAX_PARTS * THREADS) {
        let four = logits[index];
        for (var part = 0u; part < 4u; part += 1u) {
            if (four[part] > value && 4u * index + part < params.dim) {
                value = four[part];
                id = 4u * index + part;
            }
        }
    }
    largest_of_all(thread, value, id);
    if (thread == 0u) {
        best[group.x] = vec2<u32>(bitcast<u32>(best_value[0]), best_id[0]);
    }
}
