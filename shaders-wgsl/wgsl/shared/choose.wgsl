// What happens once a token is chosen: it becomes the one in flight, the step state moves past those that were, and
// a token that ends the text stops everything after it.

@group(0) @binding(1) var<storage, read_write> state: StepState;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> ids: array<u32>;
@group(0) @binding(5) var<storage, read> stops: array<u32>; // their number, then the ids

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
