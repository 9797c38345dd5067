// What the products of a chunk bind, and where their results go.

@group(0) @binding(0) var<uniform> params: PieceParams;
@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn store_one(token: u32, piece_row: u32, value: f32) {
    if (piece_row < params.rows) {
        let whole_row = params.row_offset + piece_row;
        let index = token * params.y_stride + whole_row;
        var sum = value + vector_at(whole_row);
        if (ADD_TO_Y) {
            sum += y[index];
        }
        y[index] = sum;
    }
}

// Rows row, row + 16, row + 32 and row + 48 of one token.
fn store(token: u32, row: u32, values: vec4<f32>) {
    if (token < state.len) {
        store_one(token, row, values.x);
        store_one(token, row + 16u, values.y);
        store_one(token, row + 32u, values.z);
        store_one(token, row + 48u, values.w);
    }
}

// What a thread has: rows as above of tokens token, token + 16 and, in tiles of 64 tokens, token + 32 and token + 48.
fn store_all(token: u32, row: u32, sums: array<vec4<f32>, 4>) {
    store(token, row, sums[0]);
    store(token + 16u, row, sums[1]);
    if (TILE_TOKENS == 64u) {
        store(token + 32u, row, sums[2]);
        store(token + 48u, row, sums[3]);
    }
}
