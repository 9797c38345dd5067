// The sums of a set of lanes, through workgroup memory.

var<workgroup> partials: array<RowSums, THREADS>;
var<workgroup> squares: array<f32, THREADS>;

struct SetSums {
    sums: RowSums,
    squares: f32,
}

// A set's sums, and with a norm the sum of squares: of the whole workgroup, or with codes of the set, for every set sees
// all of them. Only lane 0 of a set gets them.
fn set_sums(thread: u32, sums: RowSums, square_sum: f32) -> SetSums {
    let lane = thread % LANES;
    var all = SetSums(sums, square_sum);
    // Eight sums a set, then one; sixteen sums of squares of the whole workgroup, then one.
    partials[thread] = sums;
    squares[thread] = square_sum;
    workgroupBarrier();
    if (lane < 8u) {
        for (var other = 8u; other < LANES; other += 8u) {
            all.sums += partials[thread + other];
            if (OF_CODES) {
                all.squares += squares[thread + other];
            }
        }
        partials[thread] = all.sums;
        if (OF_CODES) {
            squares[thread] = all.squares;
        }
    }
    if (NORM && !OF_CODES && thread < 16u) {
        for (var other = 16u; other < THREADS; other += 16u) {
            all.squares += squares[thread + other];
        }
        squares[thread] = all.squares;
    }
    workgroupBarrier();
    if (lane == 0u) {
        for (var other = 1u; other < 8u; other += 1u) {
            all.sums += partials[thread + other];
            if (OF_CODES) {
                all.squares += squares[thread + other];
            }
        }
        if (NORM && !OF_CODES) {
            all.squares = 0.0;
            for (var other = 0u; other < 16u; other += 1u) {
                all.squares += squares[other];
            }
        }
    }
    return all;
}
