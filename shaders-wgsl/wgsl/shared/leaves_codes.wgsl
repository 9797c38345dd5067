// Beside the sums their codes, after they have met the next norm's weights, and the sums of their squares before that.

const LEAVES: bool = true;

var<workgroup> squares_kept: array<f32, OUTPUTS>;

// Asked for early, on its way beside the weights.
fn next_norm(row: u32) -> f32 {
    return vector_at(row);
}

// Of a group of codes.
fn squares_of(first: u32) -> f32 {
    var sum = 0.0;
    for (var index = 0u; index < CODE_GROUP; index += 1u) {
        sum += squares_kept[first + index];
    }
    return sum;
}

// By all threads; those that store have a row each, and the workgroup's rows from `first` on are whole groups.
fn leave(thread: u32, first: u32, end: u32, stores: bool, value: f32, norm: f32) {
    if (stores) {
        keep(thread / LANES, 0u, value * norm);
        squares_kept[thread / LANES] = value * value;
    }
    finish(thread, first, end);
}
