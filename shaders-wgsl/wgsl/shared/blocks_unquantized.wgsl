// Blocks of 32 weights without scales, over weight4 of blocks_f16 or blocks_f32. A block is its place: 32 floats in
// registers for each of four rows would be too many.

struct Block {
    at: u32,
}

// First index in `values` of each row, of matrices at these places.
fn row_values(at: vec4<u32>, row: vec4<u32>, cols: u32) -> vec4<u32> {
    return at * VALUES_PER_PLACE + row * (cols / 4u);
}

// There are no scales.
fn row_scales(at: vec4<u32>, row: vec4<u32>, cols: u32) -> vec4<u32> {
    return vec4<u32>(0u);
}

fn load_block(values_at: u32, scales_at: u32, group: u32) -> Block {
    return Block(values_at + 8u * group);
}

// Dot product of a block with 32 inputs, which are 0 past the end of the row; weights there are not read.
fn dot_block(block: Block, cols: u32, group: u32, x: array<vec4<f32>, 8>, x_sum: f32) -> f32 {
    let left = cols / 4u - 8u * group;
    let last = block.at + min(left, 8u) - 1u;
    var sum = weight4(block.at) * x[0] + weight4(min(block.at + 1u, last)) * x[1];
    sum += weight4(min(block.at + 2u, last)) * x[2] + weight4(min(block.at + 3u, last)) * x[3];
    sum += weight4(min(block.at + 4u, last)) * x[4] + weight4(min(block.at + 5u, last)) * x[5];
    sum += weight4(min(block.at + 6u, last)) * x[6] + weight4(min(block.at + 7u, last)) * x[7];
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// Four weights of the row that begins at this index.
fn four_of_row(values_at: u32, scales_at: u32, col4: u32) -> vec4<f32> {
    return weight4(values_at + col4);
}
