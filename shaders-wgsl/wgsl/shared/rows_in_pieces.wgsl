// Where rows of a matrix lie whose pieces follow each other in one binding.

struct RowPlaces {
    values_at: vec4<u32>,
    scales_at: vec4<u32>,
}

fn places_of(row: vec4<u32>) -> RowPlaces {
    let piece = row / params.piece_rows;
    let in_piece = row - piece * params.piece_rows;
    let at = piece * params.piece_step;
    let last = piece == vec4<u32>((params.rows - 1u) / params.piece_rows);
    let scales_at = at + select(vec4<u32>(params.scales_step), vec4<u32>(params.last_scales_step), last);
    return RowPlaces(
        row_values(at, in_piece, params.cols),
        row_scales(scales_at, in_piece, params.cols),
    );
}
