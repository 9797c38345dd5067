// No sums of squares beside codes.

const LEAVES: bool = false;

fn squares_of(first: u32) -> f32 {
    return 0.0;
}
