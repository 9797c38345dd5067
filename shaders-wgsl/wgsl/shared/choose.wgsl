// What happens once a token is chosen: it becomes the one in flight, the step state moves past those that were, and
// a token that ends the text stops everything after it.

@group(0) @binding(1) var<storage, read_write> state: StepState;
@group(0) @binding(2) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> ids: array<u32>;
@group(0) @binding(5) var<storage, read> stops: array<u32>; // their number, then the ids

const THREADS: u32 = 256u;
const NOBODY: u32 = 0xffffffffu;

var<workgroup> best_value: array<f32, 256>;
var<workgroup> best_id: array<u32, 256>;

// The largest value and the smallest id among its equals; every thread comes with its own.
fn largest_of_all(thread: u32, value: f32, id: u32) {
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
    workgroupBarrier();
}

// By one thread.
fn choose(id: u32) {
    tokens[0] = id;
    ids[state.step] = id;
    state.start += state.len;
    state.step += 1u;
    state.len = 1u;
    for (var index = 1u; index <= stops[0]; index += 1u) {
        if (stops[index] == id) {
            state.stopped = 1u;
            state.len = 0u;
        }
    }
}
