// Tiles of halves for matmul_scaled: inputs as parts of their group's largest, weights as whole numbers, so that no sum
// of a group overflows. Two sums of 16 products each in f16, then f32.

// Four columns of a row or of a token.
alias Element = vec4<f16>;
// Two sums for each of a thread's four rows.
alias Dots = array<vec2<f16>, 4>;

const ELEMENTS: u32 = 8u;
// What the largest input of a group becomes.
const LARGEST: f32 = 1.0;

fn store_weights(quarter: u32, row: u32, bytes: vec2<u32>) {
    tile_w[2u * quarter * ROW_STRIDE + row] = vec4<f16>(signed_bytes(bytes.x));
    tile_w[(2u * quarter + 1u) * ROW_STRIDE + row] = vec4<f16>(signed_bytes(bytes.y));
}

fn store_inputs(quarter: u32, token: u32, first: vec4<f32>, last: vec4<f32>) {
    tile_x[2u * quarter * TOKEN_STRIDE + token] = vec4<f16>(first);
    tile_x[(2u * quarter + 1u) * TOKEN_STRIDE + token] = vec4<f16>(last);
}

fn signed_bytes(bytes: u32) -> vec4<i32> {
    return bitcast<vec4<i32>>(vec4<u32>(bytes) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
}

fn add_products(dots: Dots, rows: array<Element, 4>, x: Element) -> Dots {
    return Dots(
        fma(rows[0].zw, x.zw, fma(rows[0].xy, x.xy, dots[0])),
        fma(rows[1].zw, x.zw, fma(rows[1].xy, x.xy, dots[1])),
        fma(rows[2].zw, x.zw, fma(rows[2].xy, x.xy, dots[2])),
        fma(rows[3].zw, x.zw, fma(rows[3].xy, x.xy, dots[3])),
    );
}

fn sums_of(dots: Dots) -> vec4<f32> {
    let low = vec4<f32>(vec4<f16>(dots[0].x, dots[1].x, dots[2].x, dots[3].x));
    return low + vec4<f32>(vec4<f16>(dots[0].y, dots[1].y, dots[2].y, dots[3].y));
}
