//! Weights to pieces and back.
//!
//! Packing takes whole rows of f32, so a tensor can be packed piece by piece without ever lying in memory
//! twice. What a piece means is what [`unpack`] says, in f32: both engines must agree with it bit for bit
//! before they multiply. Values that a type cannot hold are refused, never clamped silently.

use half::f16;

use crate::error::{FormatError, Result};
use crate::groups::{GROUP, Q8Group, write_q4, write_q8};
use crate::piece::{DType, PieceLayout};

/// A piece and how far it is from what it was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedPiece {
    /// The piece, laid out as [`PieceLayout`] says.
    pub bytes: Vec<u8>,
    /// Largest absolute difference between a source weight and its stored value.
    pub max_error: f32,
}

/// Packs whole rows of `cols` weights each.
pub fn pack(dtype: DType, weights: &[f32], cols: u32) -> Result<PackedPiece> {
    let rows = rows_of(weights.len(), cols)?;
    PieceLayout::of(dtype, rows, cols)?;
    if let Some(index) = weights.iter().position(|weight| !weight.is_finite()) {
        return Err(FormatError::Unrepresentable {
            index,
            value: weights[index].into(),
            dtype: dtype.name(),
            reason: "it is not finite",
        });
    }
    match dtype {
        DType::F32 => Ok(PackedPiece {
            bytes: weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
            max_error: 0.0,
        }),
        DType::F16 => pack_f16(weights),
        DType::Q4 => {
            let (groups, _) = weights.as_chunks::<GROUP>();
            let mut max_error = 0f32;
            let packed = groups
                .iter()
                .enumerate()
                .map(|(index, group)| {
                    let packed = crate::q4_search::fit(group)
                        .ok_or_else(|| too_large(index, group, DType::Q4))?;
                    for (at, &weight) in group.iter().enumerate() {
                        max_error = max_error.max((packed.value(at) - weight).abs());
                    }
                    Ok(packed)
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(PackedPiece {
                bytes: write_q4(&packed),
                max_error,
            })
        }
        DType::Q8 => {
            let (groups, _) = weights.as_chunks::<GROUP>();
            let mut max_error = 0f32;
            let packed = groups
                .iter()
                .enumerate()
                .map(|(index, group)| {
                    let packed = fit_q8(group).ok_or_else(|| too_large(index, group, DType::Q8))?;
                    for (at, &weight) in group.iter().enumerate() {
                        max_error = max_error.max((packed.value(at) - weight).abs());
                    }
                    Ok(packed)
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(PackedPiece {
                bytes: write_q8(&packed),
                max_error,
            })
        }
    }
}

/// The weights of a piece, row by row.
pub fn unpack(dtype: DType, bytes: &[u8], rows: u32, cols: u32) -> Result<Vec<f32>> {
    let layout = PieceLayout::of(dtype, rows, cols)?;
    if bytes.len() as u64 != layout.bytes {
        return Err(FormatError::size(
            format!("{} piece of {rows} rows of {cols}", dtype.name()),
            bytes.len() as u64,
            layout.bytes,
        ));
    }
    // The piece is in memory, so its sizes fit.
    let at = |offset: u64| {
        usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len())
    };
    let values = &bytes[..at(layout.values_bytes)];
    let (scales, _) = bytes[at(layout.scales_offset)..].as_chunks::<2>();
    let half = |index: usize| f16::from_le_bytes(scales[index]).to_f32();
    let count = rows as usize * cols as usize;
    Ok(match dtype {
        DType::F32 => {
            let (words, _) = values.as_chunks::<4>();
            words.iter().map(|&word| f32::from_le_bytes(word)).collect()
        }
        DType::F16 => {
            let (halves, _) = values.as_chunks::<2>();
            let halves = halves.iter().take(count);
            halves
                .map(|&half| f16::from_le_bytes(half).to_f32())
                .collect()
        }
        DType::Q8 => values
            .iter()
            .enumerate()
            .map(|(index, &byte)| half(index / GROUP) * f32::from(byte.cast_signed()))
            .collect(),
        DType::Q4 => (0..count)
            .map(|index| {
                let nibble = values[index / 2] >> (4 * (index % 2)) & 15;
                let group = index / GROUP;
                half(2 * group) * f32::from(nibble) + half(2 * group + 1)
            })
            .collect(),
    })
}

fn pack_f16(weights: &[f32]) -> Result<PackedPiece> {
    let mut bytes = Vec::with_capacity(weights.len().div_ceil(2) * 4);
    let mut max_error = 0f32;
    for (index, &weight) in weights.iter().enumerate() {
        let half = f16::from_f32(weight);
        if !half.is_finite() {
            return Err(FormatError::Unrepresentable {
                index,
                value: weight.into(),
                dtype: "f16",
                reason: "its magnitude exceeds 65504",
            });
        }
        max_error = max_error.max((half.to_f32() - weight).abs());
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(PackedPiece { bytes, max_error })
}

/// The better of two neighboring f16 scales: the largest magnitude over 127, rounded to nearest, and the next up.
fn fit_q8(group: &[f32; GROUP]) -> Option<Q8Group> {
    let largest = group.iter().fold(0f32, |most, w| most.max(w.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let next = f16::from_bits(scale.to_bits() + 1);
    let mut best: Option<(f32, Q8Group)> = None;
    for scale in [scale, next] {
        if !scale.is_finite() {
            continue;
        }
        let inverse = match scale.to_f32() {
            0.0 => 0.0,
            scale => 1.0 / scale,
        };
        let mut packed = Q8Group {
            scale,
            values: [0; GROUP],
        };
        let mut error = 0.0;
        for (at, &weight) in group.iter().enumerate() {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounded and clamped to -127..=127"
            )]
            {
                packed.values[at] = (weight * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
            }
            error += (packed.value(at) - weight).powi(2);
        }
        if best.is_none_or(|(least, _)| error < least) {
            best = Some((error, packed));
        }
    }
    best.map(|(_, packed)| packed)
}

/// Whole rows in `weights`.
pub(crate) fn rows_of(weights: usize, cols: u32) -> Result<u32> {
    let cols = cols as usize;
    let rows = weights.checked_div(cols).unwrap_or(0);
    match u32::try_from(rows) {
        Ok(rows) if rows as usize * cols == weights && rows > 0 => Ok(rows),
        _ => Err(FormatError::invalid(
            "number of weights",
            weights,
            format!("whole rows of {cols}"),
        )),
    }
}

fn too_large(group: usize, weights: &[f32; GROUP], dtype: DType) -> FormatError {
    let magnitude = |index: &usize| weights[*index].abs();
    let worst = (0..GROUP)
        .max_by(|a, b| magnitude(a).total_cmp(&magnitude(b)))
        .unwrap_or(0);
    FormatError::Unrepresentable {
        index: group * GROUP + worst,
        value: weights[worst].into(),
        dtype: dtype.name(),
        reason: "its group needs a scale or a minimum beyond f16",
    }
}
