// The sums of a set of lanes: within subgroups by exchange, the rest through workgroup memory.

// Neighboring threads that surely share a subgroup, of a set.
const RUN: u32 = min(SUBGROUP, LANES);
const RUNS: u32 = THREADS / RUN;

var<workgroup> partials: array<RowSums, RUNS>;
var<workgroup> squares: array<f32, RUNS>;

struct SetSums {
    sums: RowSums,
    squares: f32,
}

// A set's sums, and with a norm the sum of squares: of the whole workgroup, or with codes of the set, for every set sees
// all of them. Only lane 0 of a set gets them.
fn set_sums(thread: u32, sums: RowSums, square_sum: f32) -> SetSums {
    var all = SetSums(sums, square_sum);
    for (var step = 1u; step < RUN; step *= 2u) {
        all.sums += subgroupShuffleXor(all.sums, step);
        if (NORM) {
            all.squares += subgroupShuffleXor(all.squares, step);
        }
    }
    if ((NORM && !OF_CODES) || RUN < LANES) {
        if (thread % RUN == 0u) {
            partials[thread / RUN] = all.sums;
            squares[thread / RUN] = all.squares;
        }
        workgroupBarrier();
        if (thread % LANES == 0u) {
            for (var other = 1u; other < LANES / RUN; other += 1u) {
                all.sums += partials[thread / RUN + other];
                all.squares += squares[thread / RUN + other];
            }
            if (NORM && !OF_CODES) {
                all.squares = 0.0;
                for (var other = 0u; other < RUNS; other += 1u) {
                    all.squares += squares[other];
                }
            }
        }
    }
    return all;
}
