// Blocks of blocks_q8 against codes.

// Of the bytes of each CODE_GROUP of a block, and what they are multiplied with.
struct BlockDot {
    sums: vec4<i32>,
    scale: vec2<f32>,
}

fn block_dot(block: Block, x: array<vec2<u32>, 4>) -> BlockDot {
    let sums = vec4<i32>(
        dot8(block.low.xy, x[0]),
        dot8(block.low.zw, x[1]),
        dot8(block.high.xy, x[2]),
        dot8(block.high.zw, x[3]),
    );
    return BlockDot(sums, vec2<f32>(block.scale, 0.0));
}
