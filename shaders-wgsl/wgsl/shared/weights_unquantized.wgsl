// Groups of 32 weights without scales, over weight4 of weights_f16 or weights_f32.

const HAS_TAIL: bool = true;

// Eight weights.
struct Stored {
    first: vec4<f32>,
    last: vec4<f32>,
}

// A quarter of 32 weights of a row; 0 past its end.
fn load_quarter(row: u32, group: u32, quarter: u32, cols: u32) -> Stored {
    let col4 = group * 8u + 2u * quarter;
    return Stored(weight4(row, col4, cols), weight4(row, col4 + 1u, cols));
}

fn first_four(stored: Stored) -> vec4<f32> {
    return stored.first;
}

fn last_four(stored: Stored) -> vec4<f32> {
    return stored.last;
}

// Dot product of 32 weights of a row with the inputs x; the sum of x is of use to q4 only.
fn dot_group(row: u32, group: u32, cols: u32, x: array<vec4<f32>, 8>, x_sum: f32) -> f32 {
    let col4 = group * 8u;
    var sum = dot(weight4(row, col4, cols), x[0]) + dot(weight4(row, col4 + 1u, cols), x[1]);
    sum += dot(weight4(row, col4 + 2u, cols), x[2]) + dot(weight4(row, col4 + 3u, cols), x[3]);
    sum += dot(weight4(row, col4 + 4u, cols), x[4]) + dot(weight4(row, col4 + 5u, cols), x[5]);
    sum += dot(weight4(row, col4 + 6u, cols), x[6]) + dot(weight4(row, col4 + 7u, cols), x[7]);
    return sum;
}
