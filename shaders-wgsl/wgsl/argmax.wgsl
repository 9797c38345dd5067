// Chooses the token with the largest logit (the smallest id among equals) and makes it the one in flight: the
// step state moves past the tokens in flight, and the next dispatches find the chosen token at its position.
//
// logits  [dim] f32            tokens  the id goes to entry 0            ids  the id goes to entry state.step
// Grid: (1); one workgroup of 256. Numerics: comparisons only; NaN is never chosen. Twin: reference/src/argmax.rs.

@group(0) @binding(0) var<uniform> params: RowParams;
@group(0) @binding(1) var<storage, read_write> state: StepState;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> ids: array<u32>;

const THREADS: u32 = 256u;

var<workgroup> best_value: array<f32, 256>;
var<workgroup> best_id: array<u32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    var value = UNSEEN;
    var id = 0xffffffffu;
    for (var index = thread; index < params.dim; index += THREADS) {
        let logit = logits[index];
        if (logit > value) {
            value = logit;
            id = index;
        }
    }
    best_value[thread] = value;
    best_id[thread] = id;
    for (var width = THREADS / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (thread < width) {
            let other = best_value[thread + width];
            let other_id = best_id[thread + width];
            let mine = best_value[thread];
            if (other > mine || (other == mine && other_id < best_id[thread])) {
                best_value[thread] = other;
                best_id[thread] = other_id;
            }
        }
    }
    if (thread == 0u) {
        let chosen = select(best_id[0], 0u, best_id[0] == 0xffffffffu);
        tokens[0] = chosen;
        ids[state.step] = chosen;
        state.start += state.len;
        state.len = 1u;
        state.step += 1u;
    }
}
