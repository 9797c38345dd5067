// Chooses the token with the largest logit (the smallest id among equals) and makes it the one in flight: the
// step state moves past the tokens in flight, and the next dispatches find the chosen token at its position. Once
// the state says that the text has ended, nothing is chosen.
//
// logits  [dim] f32, the buffer whole vectors            tokens  the id goes to entry 0
// ids  the id goes to entry state.step                   stops  their number, then ids that end the text
// Grid: (1); one workgroup of 256. Numerics: comparisons only; NaN is never chosen. Twin: reference/src/argmax.rs.

@group(0) @binding(0) var<uniform> params: RowParams;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    var value = UNSEEN;
    var id = NOBODY;
    let vectors = (params.dim + 3u) / 4u;
    // Four vectors at a time, so that four are on their way at once; past the end the last one again.
    for (var index = thread; index < vectors; index += 4u * THREADS) {
        let indices = min(vec4<u32>(index) + vec4<u32>(0u, 1u, 2u, 3u) * THREADS, vec4<u32>(vectors - 1u));
        let a = logits[indices.x];
        let b = logits[indices.y];
        let c = logits[indices.z];
        let d = logits[indices.w];
        let fours = array<vec4<f32>, 4>(a, b, c, d);
        for (var four = 0u; four < 4u; four += 1u) {
            for (var part = 0u; part < 4u; part += 1u) {
                let candidate = 4u * indices[four] + part;
                let logit = fours[four][part];
                if (logit > value && candidate < params.dim) {
                    value = logit;
                    id = candidate;
                }
            }
        }
    }
    largest_of_all(thread, value, id);
    if (thread == 0u && state.stopped == 0u) {
        choose(select(best_id[0], 0u, best_id[0] == NOBODY));
    }
}
