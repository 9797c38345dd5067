//! GGUF's quantized blocks into our pieces, without going through f32 where nothing need be lost.
//!
//! `Q4_0`, `Q4_1` and `Q8_0` keep every bit of information; `Q4_K` keeps its nibbles, while the products of its
//! 6-bit scales with the block's f16 scale are rounded to f16. This file knows blocks, not GGUF files.

use half::f16;

use crate::error::{FormatError, Result};
use crate::groups::{GROUP, Q4Group, Q8Group, write_q4, write_q8};
use crate::piece::{DType, PieceLayout};
use crate::quant::{PackedPiece, rows_of};

/// A block type that [`repack`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 32 weights `d * (q - 8)`.
    Q4_0,
    /// 32 weights `d * q + m`.
    Q4_1,
    /// 32 weights `d * q`, q a signed byte.
    Q8_0,
    /// 256 weights in eight groups of 32: `d * sc * q - dmin * m`.
    Q4K,
}

impl BlockType {
    /// Weights of a block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => GROUP,
            Self::Q4K => 8 * GROUP,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
        }
    }

    /// The type that takes its weights.
    pub const fn dtype(self) -> DType {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => DType::Q4,
            Self::Q8_0 => DType::Q8,
        }
    }

    /// Whether every weight keeps its exact value.
    pub const fn is_lossless(self) -> bool {
        !matches!(self, Self::Q4K)
    }

    /// GGUF's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
        }
    }
}

/// Packs whole rows of `cols` weights that lie in `blocks` as GGUF has them.
///
/// Refuses what f16 cannot hold (a `Q4_0` scale beyond 8188 has a minimum beyond f16): then quantize the f32
/// values to q8 instead.
pub fn repack(block_type: BlockType, blocks: &[u8], cols: u32) -> Result<PackedPiece> {
    let count = blocks.len() / block_type.bytes();
    if count * block_type.bytes() != blocks.len() {
        return Err(FormatError::size(
            format!("run of {} blocks", block_type.name()),
            blocks.len() as u64,
            (count * block_type.bytes()) as u64,
        ));
    }
    if !(cols as usize).is_multiple_of(block_type.weights()) {
        return Err(FormatError::invalid(
            format!("columns of a {} tensor", block_type.name()),
            cols,
            format!("a multiple of {}", block_type.weights()),
        ));
    }
    let rows = rows_of(count * block_type.weights(), cols)?;
    PieceLayout::of(block_type.dtype(), rows, cols)?;
    match block_type {
        BlockType::Q4_0 => convert::<18, _>(blocks, q4_0).map(|groups| exact(write_q4(&groups))),
        BlockType::Q4_1 => convert::<20, _>(blocks, q4_1).map(|groups| exact(write_q4(&groups))),
        BlockType::Q8_0 => convert::<34, _>(blocks, q8_0).map(|groups| exact(write_q8(&groups))),
        BlockType::Q4K => {
            let blocks = convert::<144, _>(blocks, q4_k)?;
            let max_error = blocks
                .iter()
                .fold(0f32, |most, (_, error)| most.max(*error));
            let groups: Vec<Q4Group> = blocks.into_iter().flat_map(|(groups, _)| groups).collect();
            Ok(PackedPiece {
                bytes: write_q4(&groups),
                max_error,
            })
        }
    }
}

fn exact(bytes: Vec<u8>) -> PackedPiece {
    PackedPiece {
        bytes,
        max_error: 0.0,
    }
}

/// Converts block by block; `index` in errors is that of the block's first weight.
fn convert<const BYTES: usize, T>(
    blocks: &[u8],
    block: impl Fn(&[u8; BYTES]) -> std::result::Result<T, Unfit>,
) -> Result<Vec<T>> {
    let (blocks, _) = blocks.as_chunks::<BYTES>();
    let weights = if BYTES == 144 { 8 * GROUP } else { GROUP };
    blocks
        .iter()
        .enumerate()
        .map(|(index, bytes)| {
            block(bytes).map_err(|unfit| FormatError::Unrepresentable {
                index: index * weights,
                value: unfit.value.into(),
                dtype: if BYTES == 34 { "q8" } else { "q4" },
                reason: unfit.reason,
            })
        })
        .collect()
}

/// A number that f16 cannot hold.
struct Unfit {
    value: f32,
    reason: &'static str,
}

fn finite(value: f16) -> std::result::Result<f16, Unfit> {
    rounded(value.to_f32(), "the block's scale or minimum is not finite")
}

fn rounded(value: f32, reason: &'static str) -> std::result::Result<f16, Unfit> {
    let half = f16::from_f32(value);
    if half.is_finite() {
        Ok(half)
    } else {
        Err(Unfit { value, reason })
    }
}

fn half(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// GGUF's half blocks: byte i holds weight i in its low nibble and weight i + 16 in its high one.
fn halves(bytes: &[u8]) -> [u8; GROUP] {
    let mut nibbles = [0; GROUP];
    for (at, byte) in bytes.iter().take(GROUP / 2).enumerate() {
        nibbles[at] = byte & 15;
        nibbles[at + GROUP / 2] = byte >> 4;
    }
    nibbles
}

fn q4_0(block: &[u8; 18]) -> std::result::Result<Q4Group, Unfit> {
    let scale = finite(half(block, 0))?;
    Ok(Q4Group {
        scale,
        // Times -8 is exact unless it overflows.
        minimum: rounded(
            -8.0 * scale.to_f32(),
            "the minimum of its Q4_0 block exceeds 65504",
        )?,
        nibbles: halves(&block[2..]),
    })
}

fn q4_1(block: &[u8; 20]) -> std::result::Result<Q4Group, Unfit> {
    Ok(Q4Group {
        scale: finite(half(block, 0))?,
        minimum: finite(half(block, 2))?,
        nibbles: halves(&block[4..]),
    })
}

fn q8_0(block: &[u8; 34]) -> std::result::Result<Q8Group, Unfit> {
    let mut values = [0; GROUP];
    for (value, byte) in values.iter_mut().zip(&block[2..]) {
        *value = byte.cast_signed();
    }
    Ok(Q8Group {
        scale: finite(half(block, 0))?,
        values,
    })
}

/// Eight groups, and the largest difference that rounding their scales and minimums makes.
fn q4_k(block: &[u8; 144]) -> std::result::Result<([Q4Group; 8], f32), Unfit> {
    const REASON: &str = "a scale or a minimum of its Q4_K block exceeds 65504";
    let (d, d_min) = (half(block, 0).to_f32(), half(block, 2).to_f32());
    let packed = &block[4..16];
    let mut groups = [Q4Group {
        scale: f16::ZERO,
        minimum: f16::ZERO,
        nibbles: [0; GROUP],
    }; 8];
    let mut max_error = 0f32;
    for (index, group) in groups.iter_mut().enumerate() {
        let (scale6, min6) = six_bits(packed, index);
        let (scale, minus) = (d * f32::from(scale6), d_min * f32::from(min6));
        group.scale = rounded(scale, REASON)?;
        group.minimum = rounded(-minus, REASON)?;
        // 32 bytes serve two groups: the low nibbles the even one, the high nibbles the odd one.
        let bytes = &block[16 + index / 2 * GROUP..][..GROUP];
        for (at, byte) in bytes.iter().enumerate() {
            let nibble = byte >> (4 * (index % 2)) & 15;
            group.nibbles[at] = nibble;
            let source = scale * f32::from(nibble) - minus;
            max_error = max_error.max((group.value(at) - source).abs());
        }
    }
    Ok((groups, max_error))
}

/// Scale and minimum of group `index`, 6 bits each, from the 12 packed bytes.
fn six_bits(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        (
            packed[index + 4] & 15 | packed[index - 4] >> 6 << 4,
            packed[index + 4] >> 4 | packed[index] >> 6 << 4,
        )
    }
}
