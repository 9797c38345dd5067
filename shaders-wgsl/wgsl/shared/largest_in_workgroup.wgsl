// The largest of all threads' values, through workgroup memory.

var<workgroup> best_value: array<f32, THREADS>;
var<workgroup> best_id: array<u32, THREADS>;

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
