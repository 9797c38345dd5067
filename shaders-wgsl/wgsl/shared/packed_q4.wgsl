// Blocks of blocks_q4 against codes.

// Of the bytes of each CODE_GROUP of a block, and what they are multiplied with and what is added.
struct BlockDot {
    sums: vec4<i32>,
    scale: vec2<f32>,
}

fn block_dot(block: Block, x: array<vec2<u32>, 4>) -> BlockDot {
    let sums = vec4<i32>(
        dot8(spread(block.words.x), x[0]),
        dot8(spread(block.words.y), x[1]),
        dot8(spread(block.words.z), x[2]),
        dot8(spread(block.words.w), x[3]),
    );
    return BlockDot(sums, scale_and_offset_of(block.scale));
}
