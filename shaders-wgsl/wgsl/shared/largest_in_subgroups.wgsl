// The largest of all threads' values: within subgroups by exchange, the rest through workgroup memory.

const RUN: u32 = min(SUBGROUP, THREADS);

var<workgroup> best_value: array<f32, THREADS / RUN>;
var<workgroup> best_id: array<u32, THREADS / RUN>;

// The largest value and the smallest id among its equals; every thread comes with its own.
fn largest_of_all(thread: u32, value: f32, id: u32) {
    var mine = value;
    var my_id = id;
    for (var step = 1u; step < RUN; step *= 2u) {
        let other = subgroupShuffleXor(mine, step);
        let other_id = subgroupShuffleXor(my_id, step);
        let better = other > mine || (other == mine && other_id < my_id);
        mine = select(mine, other, better);
        my_id = select(my_id, other_id, better);
    }
    if (thread % RUN == 0u) {
        best_value[thread / RUN] = mine;
        best_id[thread / RUN] = my_id;
    }
    workgroupBarrier();
    if (thread == 0u) {
        for (var run = 1u; run < THREADS / RUN; run += 1u) {
            let other = best_value[run];
            if (other > mine || (other == mine && best_id[run] < my_id)) {
                mine = other;
                my_id = best_id[run];
            }
        }
        best_value[0] = mine;
        best_id[0] = my_id;
    }
    workgroupBarrier();
}
