// Blocks of blocks_q4 against packed inputs.

// Of the bytes of a block's halves, and what they are multiplied with and what is added.
struct BlockDot {
    sums: vec2<i32>,
    scale: vec2<f32>,
}

fn block_dot(block: Block, x: array<vec2<u32>, 4>) -> BlockDot {
    let sums = vec2<i32>(
        dot8(spread(block.words.x), x[0]) + dot8(spread(block.words.y), x[1]),
        dot8(spread(block.words.z), x[2]) + dot8(spread(block.words.w), x[3]),
    );
    return BlockDot(sums, scale_and_offset_of(block.scale));
}
