// No bias.

fn bias_of(at: u32, index: u32) -> f32 {
    return 0.0;
}
