// Chooses the token with the largest logit (the smallest id among equals) and makes it the one in flight: the
// step state moves past the tokens in flight, and the next dispatches find the chosen token at its position. Once
// the state says that the text has ended, nothing is chosen.
//
// logits  [dim] f32, the buffer whole vectors            tokens  the id goes to entry 0
// ids  the id goes to entry state.step                   stops  their number, then ids that end the text
// Grid: (1); one workgroup of 256. Numerics: comparisons only; NaN is never chosen. Twin: reference/src/argmax.rs.

@group(0) @binding(0) var<uniform> params: RowParams;

struct Best {
    value: f32,
    id: u32,
}

fn better(best: Best, value: f32, id: u32) -> Best {
    if (value > best.value && id < params.dim) {
        return Best(value, id);
    }
    return best;
}

fn best_of(best: Best, four: vec4<f32>, index: u32) -> Best {
    let id = 4u * index;
    return better(better(better(better(best, four.x, id), four.y, id + 1u), four.z, id + 2u), four.w, id + 3u);
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    var best = Best(UNSEEN, NOBODY);
    let vectors = (params.dim + 3u) / 4u;
    // Eight vectors at a time, so that eight are on their way at once; past the end the last one again.
    for (var index = thread; index < vectors; index += 8u * THREADS) {
        let low = min(vec4<u32>(index) + vec4<u32>(0u, 1u, 2u, 3u) * THREADS, vec4<u32>(vectors - 1u));
        let high = min(vec4<u32>(index) + vec4<u32>(4u, 5u, 6u, 7u) * THREADS, vec4<u32>(vectors - 1u));
        let a = logits[low.x];
        let b = logits[low.y];
        let c = logits[low.z];
        let d = logits[low.w];
        let e = logits[high.x];
        let f = logits[high.y];
        let g = logits[high.z];
        let h = logits[high.w];
        best = best_of(best_of(best_of(best_of(best, a, low.x), b, low.y), c, low.z), d, low.w);
        best = best_of(best_of(best_of(best_of(best, e, high.x), f, high.y), g, high.z), h, high.w);
    }
    largest_of_all(thread, best.value, best.id);
    if (thread == 0u && state.stopped == 0u) {
        choose(select(best_id[0], 0u, best_id[0] == NOBODY));
    }
}
