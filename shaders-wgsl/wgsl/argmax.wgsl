// Chooses the token with the largest logit (the smallest id among equals) and makes it the one in flight: the
// step state moves past the tokens in flight, and the next dispatches find the chosen token at its position. Once
// the state says that the text has ended, nothing is chosen.
//
// best  [ARGMAX_PARTS] of each part of the logits the largest's bits and its id    tokens  the id goes to entry 0
// ids  the id goes to entry state.step                   stops  their number, then ids that end the text
// Grid: (1); one workgroup of 256. Numerics: comparisons only; NaN is never chosen. Twin: reference/src/argmax.rs.

@group(0) @binding(2) var<storage, read> best: array<vec2<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    let own = best[min(thread, ARGMAX_PARTS - 1u)];
    largest_of_all(thread, bitcast<f32>(own.x), own.y);
    if (thread == 0u && state.stopped == 0u) {
        choose(select(best_id[0], 0u, best_id[0] == NOBODY));
    }
}
