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
    for (var index = thread; 4u * index < params.dim; index += THREADS) {
        let four = logits[index];
        for (var part = 0u; part < 4u; part += 1u) {
            if (four[part] > value && 4u * index + part < params.dim) {
                value = four[part];
                id = 4u * index + part;
            }
        }
    }
    largest_of_all(thread, value, id);
    if (thread == 0u && state.stopped == 0u) {
        choose(select(best_id[0], 0u, best_id[0] == NOBODY));
    }
}
