//! How the rows of a tensor lie in a piece: stored types, sizes, and where the scales begin.
//!
//! Values and scales are u32 arrays, each at a multiple of 256 bytes, so that a piece is copied into a GPU
//! buffer as it is and its two parts can be bound apart.

use moa_mask::abi::QUANT_GROUP;
use serde::{Deserialize, Serialize};

use crate::error::{Result, ensure};

/// Offsets of pieces, and of the scales inside a piece, are multiples of this: WebGPU's default alignment of
/// bindings.
pub const ALIGN: u64 = ALIGN_USIZE as u64;
pub(crate) const ALIGN_USIZE: usize = 256;
/// Largest piece, scales and padding included.
pub const MAX_PIECE_BYTES: u32 = 24 << 20;
/// Row counts of split tensors are multiples of this where the rows allow it, so that kernels' tiles do not
/// straddle pieces.
const ROW_STEP: u32 = 64;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 4 bits, groups of 32 along a row: `w = scale*q + minimum`, q in 0..=15, f16 scale and minimum.
    Q4,
    /// 8 bits, groups of 32 along a row: `w = scale*q`, q in -128..=127, f16 scale.
    Q8,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl DType {
    /// The name in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4 => "q4",
            Self::Q8 => "q8",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Whether rows of `cols` weights can be stored so: quantized types need whole groups.
    pub const fn fits(self, cols: u32) -> bool {
        match self {
            Self::Q4 | Self::Q8 => cols.is_multiple_of(QUANT_GROUP),
            Self::F16 | Self::F32 => true,
        }
    }

    /// This type, or f16 where rows of `cols` weights are no whole groups.
    pub const fn for_cols(self, cols: u32) -> Self {
        if self.fits(cols) { self } else { Self::F16 }
    }
}

/// Sizes of a piece, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceLayout {
    /// Values: nibbles, bytes, halves or floats, as whole u32 words.
    pub values_bytes: u64,
    /// Where the scales begin: the end of the values rounded up to [`ALIGN`]. Without scales, the end of the values.
    pub scales_offset: u64,
    /// Scales, as whole u32 words; 0 for f16 and f32.
    pub scales_bytes: u64,
    /// The whole piece.
    pub bytes: u64,
}

impl PieceLayout {
    /// The layout of `rows` rows of `cols` weights.
    pub fn of(dtype: DType, rows: u32, cols: u32) -> Result<Self> {
        ensure(rows > 0, "rows of a piece", rows, "at least 1")?;
        ensure(
            cols > 0 && dtype.fits(cols),
            format!("columns of a {} piece", dtype.name()),
            cols,
            match dtype {
                DType::Q4 | DType::Q8 => format!("a multiple of {QUANT_GROUP}"),
                DType::F16 | DType::F32 => "at least 1".into(),
            },
        )?;
        // Up to 2^64 - 2^33 + 1: only the four-fold of it can overflow.
        let weights = u64::from(rows) * u64::from(cols);
        let groups = weights / u64::from(QUANT_GROUP);
        let (values_bytes, scales_bytes) = match dtype {
            DType::Q4 => (weights / 2, groups * 4),
            DType::Q8 => (weights, groups.div_ceil(2) * 4),
            DType::F16 => (weights.div_ceil(2).saturating_mul(4), 0),
            DType::F32 => (weights.saturating_mul(4), 0),
        };
        ensure(
            values_bytes < 1 << 62,
            "weights of a piece",
            weights,
            "fewer than 2^60",
        )?;
        let scales_offset = if scales_bytes == 0 {
            values_bytes
        } else {
            values_bytes.next_multiple_of(ALIGN)
        };
        Ok(Self {
            values_bytes,
            scales_offset,
            scales_bytes,
            bytes: scales_offset + scales_bytes,
        })
    }
}

/// Rows of each piece of a tensor: as few pieces as [`MAX_PIECE_BYTES`] allows.
pub fn split_rows(dtype: DType, rows: u32, cols: u32) -> Result<Vec<u32>> {
    let most = u64::from(MAX_PIECE_BYTES);
    if PieceLayout::of(dtype, rows, cols)?.bytes <= most {
        return Ok(vec![rows]);
    }
    // The largest step whose layout fits, by bisection: sizes grow with rows.
    let fits = |rows: u32| PieceLayout::of(dtype, rows, cols).is_ok_and(|l| l.bytes <= most);
    let (mut low, mut high) = (0, rows);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    ensure(
        low > 0,
        "columns of a tensor",
        cols,
        format!("a row of at most {most} bytes"),
    )?;
    let step = if low > ROW_STEP {
        low - low % ROW_STEP
    } else {
        low
    };
    let whole = rows / step;
    let mut pieces = vec![step; whole as usize];
    if !rows.is_multiple_of(step) {
        pieces.push(rows % step);
    }
    Ok(pieces)
}
