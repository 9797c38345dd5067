// Tiles of packed bytes for matmul_scaled: inputs rounded to 1/127 of their group's largest, weights as they are stored;
// products and sums of a group are exact.

// Eight columns of a row or of a token.
alias Element = vec2<u32>;
// One sum for each of a thread's four rows.
alias Dots = vec4<i32>;

const ELEMENTS: u32 = 4u;
// What the largest input of a group becomes.
const LARGEST: f32 = 127.0;

fn store_weights(quarter: u32, row: u32, bytes: vec2<u32>) {
    tile_w[quarter * ROW_STRIDE + row] = bytes;
}

fn store_inputs(quarter: u32, token: u32, first: vec4<f32>, last: vec4<f32>) {
    tile_x[quarter * TOKEN_STRIDE + token] = vec2<u32>(packed(rounded(first)), packed(rounded(last)));
}

fn add_products(dots: Dots, rows: array<Element, 4>, x: Element) -> Dots {
    return dots + vec4<i32>(dot8(rows[0], x), dot8(rows[1], x), dot8(rows[2], x), dot8(rows[3], x));
}

fn sums_of(dots: Dots) -> vec4<f32> {
    return vec4<f32>(dots);
}
