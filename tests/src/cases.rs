//! The cases that every GPU backend must pass. Sizes are chosen to miss tiles, blocks and groups.

use moa_mask::HeadMask;

/// Attention of a chunk, or of one token, after `start` tokens.
#[derive(Debug, Clone)]
pub struct AttentionCase {
    /// What the case is about.
    pub name: &'static str,
    /// Query heads.
    pub heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// One mask for each KV head.
    pub masks: Vec<HeadMask>,
    /// The declared context: sizes the rings.
    pub context: u32,
    /// Tokens in the cache before.
    pub start: u32,
    /// Tokens of the chunk.
    pub len: u32,
    /// Largest magnitude that scaled scores are made to reach.
    pub largest_score: f32,
}

fn mask(sink: u32, window: u32) -> HeadMask {
    HeadMask { sink, window }
}

fn case(
    name: &'static str,
    (heads, kv_heads, head_dim): (u32, u32, u32),
    masks: &[HeadMask],
    (context, start, len): (u32, u32, u32),
) -> AttentionCase {
    let kv_heads_wanted = kv_heads as usize;
    let masks = masks
        .iter()
        .copied()
        .cycle()
        .take(kv_heads_wanted)
        .collect();
    AttentionCase {
        name,
        heads,
        kv_heads,
        head_dim,
        masks,
        context,
        start,
        len,
        largest_score: 4.0,
    }
}

/// Chunks: from an empty cache, after a full one, after the ring wrapped, longer than a ring. Cases share shapes where they
/// can: a shape is a pipeline, and a software GPU takes seconds to compile one.
pub fn attention_prefill() -> Vec<AttentionCase> {
    let dense = HeadMask::DENSE;
    vec![
        case("length one", (3, 1, 64), &[mask(8, 24)], (512, 0, 1)),
        case(
            "shorter than the sink",
            (8, 1, 32),
            &[mask(16, 8)],
            (512, 0, 5),
        ),
        case("no sink", (8, 2, 64), &[mask(0, 20)], (512, 0, 70)),
        case(
            "sink and window cover all",
            (3, 1, 64),
            &[mask(16, 200)],
            (512, 0, 100),
        ),
        case("window of one", (3, 3, 16), &[mask(4, 1)], (512, 0, 40)),
        case(
            "no multiple of any tile",
            (7, 1, 64),
            &[mask(5, 37)],
            (512, 0, 77),
        ),
        case("dense", (9, 3, 64), &[dense], (512, 40, 67)),
        case(
            "after a wrapped ring",
            (8, 2, 64),
            &[mask(8, 24), mask(0, 61)],
            (512, 301, 33),
        ),
        case(
            "chunk longer than the ring",
            (8, 1, 32),
            &[mask(4, 12)],
            (512, 130, 200),
        ),
        case(
            "start inside the sink",
            (3, 1, 64),
            &[mask(64, 16)],
            (512, 30, 90),
        ),
        case(
            "different spans",
            (9, 3, 64),
            &[mask(64, 64), dense, mask(0, 5)],
            (512, 200, 129),
        ),
        case(
            "one query after many",
            (9, 3, 64),
            &[mask(64, 192), mask(64, 64), dense],
            (512, 420, 1),
        ),
        case(
            "head_dim 128",
            (8, 1, 128),
            &[mask(16, 100)],
            (512, 150, 45),
        ),
        case("head_dim 80", (4, 4, 80), &[mask(16, 40)], (512, 90, 50)),
        case("head_dim 8", (4, 2, 8), &[mask(2, 40)], (512, 90, 50)),
        case("head_dim 256", (2, 1, 256), &[mask(2, 40)], (512, 60, 33)),
        case("group of 16", (16, 1, 16), &[mask(3, 50)], (512, 90, 21)),
        AttentionCase {
            largest_score: 80.0,
            ..case(
                "scores of 80",
                (8, 2, 64),
                &[mask(8, 90), dense],
                (512, 100, 64),
            )
        },
    ]
}

/// One query: with an empty cache, a filling one, a full one; one part and several.
pub fn attention_decode() -> Vec<AttentionCase> {
    let dense = HeadMask::DENSE;
    vec![
        case("first token", (9, 3, 64), &[mask(8, 24)], (600, 0, 1)),
        case("inside the sink", (4, 2, 32), &[mask(16, 8)], (600, 5, 1)),
        case("window filling", (7, 1, 64), &[mask(16, 100)], (600, 70, 1)),
        case("no sink", (8, 2, 64), &[mask(0, 20)], (600, 300, 1)),
        case("window of one", (3, 3, 16), &[mask(4, 1)], (600, 40, 1)),
        case("dense, several parts", (9, 3, 64), &[dense], (600, 599, 1)),
        case(
            "dense, parts half empty",
            (9, 3, 64),
            &[dense],
            (2000, 3, 1),
        ),
        case(
            "wrapped rings",
            (8, 2, 64),
            &[mask(64, 300), mask(0, 61)],
            (4000, 3001, 1),
        ),
        case(
            "different spans",
            (9, 3, 64),
            &[mask(64, 512), dense, mask(0, 5)],
            (1500, 1111, 1),
        ),
        case("group of 1", (4, 4, 64), &[mask(16, 70)], (600, 500, 1)),
        case(
            "group of 8, head_dim 128",
            (8, 1, 128),
            &[mask(16, 400)],
            (600, 500, 1),
        ),
        case(
            "group of 12 in two items",
            (12, 1, 128),
            &[mask(16, 400)],
            (600, 500, 1),
        ),
        case(
            "group of 16, head_dim 16",
            (32, 2, 16),
            &[mask(16, 400), mask(0, 9)],
            (600, 500, 1),
        ),
        case("head_dim 80", (4, 4, 80), &[mask(16, 40)], (600, 90, 1)),
        case("head_dim 8", (4, 2, 8), &[mask(2, 300)], (600, 400, 1)),
        case("head_dim 256", (8, 1, 256), &[mask(2, 300)], (600, 400, 1)),
        AttentionCase {
            largest_score: 80.0,
            ..case(
                "scores of 80",
                (8, 2, 64),
                &[mask(8, 290), dense],
                (600, 550, 1),
            )
        },
    ]
}

/// A weight piece against tokens.
#[derive(Debug, Clone, Copy)]
pub struct MatmulCase {
    /// Rows of the piece.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// Tokens in flight.
    pub tokens: u32,
    /// First row of the piece in the matrix.
    pub row_offset: u32,
    /// Rows of the matrix.
    pub whole_rows: u32,
}

/// Pieces that fill no tile, pieces in the middle of a matrix. Columns are multiples of 32; types
/// without groups also get [`matmul_ragged`].
pub fn matmul() -> Vec<MatmulCase> {
    let whole = |rows, cols, tokens| MatmulCase {
        rows,
        cols,
        tokens,
        row_offset: 0,
        whole_rows: rows,
    };
    vec![
        whole(1, 32, 1),
        whole(64, 64, 64),
        whole(67, 96, 5),
        whole(130, 576, 3),
        whole(33, 160, 70),
        whole(96, 224, 65),
        whole(17, 1536, 2),
        MatmulCase {
            row_offset: 40,
            whole_rows: 100,
            ..whole(31, 64, 9)
        },
    ]
}

/// Rows that are no whole groups of 32.
pub fn matmul_ragged() -> Vec<MatmulCase> {
    let whole = |rows, cols, tokens| MatmulCase {
        rows,
        cols,
        tokens,
        row_offset: 0,
        whole_rows: rows,
    };
    vec![whole(20, 4, 3), whole(70, 100, 66), whole(70, 100, 2)]
}

/// Sizes of the kernels that work row by row: `(dim, tokens)`.
pub const ROWS: [(u32, u32); 5] = [(4, 1), (64, 3), (96, 70), (576, 5), (1536, 2)];
