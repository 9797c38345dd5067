//! Groups of quantized weights, and how a piece lays them out: values, padding, then scales.

use half::f16;
use moa_mask::abi::QUANT_GROUP;

/// Weights of a quantization group.
pub(crate) const GROUP: usize = QUANT_GROUP as usize;

/// One group of q4, before it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Q4Group {
    pub(crate) scale: f16,
    pub(crate) minimum: f16,
    pub(crate) nibbles: [u8; GROUP],
}

/// One group of q8, before it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Q8Group {
    pub(crate) scale: f16,
    pub(crate) values: [i8; GROUP],
}

impl Q4Group {
    pub(crate) fn value(&self, index: usize) -> f32 {
        self.scale.to_f32() * f32::from(self.nibbles[index]) + self.minimum.to_f32()
    }
}

impl Q8Group {
    pub(crate) fn value(&self, index: usize) -> f32 {
        self.scale.to_f32() * f32::from(self.values[index])
    }
}

/// A q4 piece: nibbles, padding, then scale and minimum of each group.
pub(crate) fn write_q4(groups: &[Q4Group]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(groups.len() * 20 + 256);
    for group in groups {
        let (pairs, _) = group.nibbles.as_chunks::<2>();
        bytes.extend(pairs.iter().map(|[low, high]| low | high << 4));
    }
    pad(&mut bytes);
    for group in groups {
        bytes.extend_from_slice(&group.scale.to_le_bytes());
        bytes.extend_from_slice(&group.minimum.to_le_bytes());
    }
    bytes
}

/// A q8 piece: bytes, padding, then scales, an odd number of them followed by a zero.
pub(crate) fn write_q8(groups: &[Q8Group]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(groups.len() * 34 + 260);
    for group in groups {
        bytes.extend(group.values.iter().map(|value| value.cast_unsigned()));
    }
    pad(&mut bytes);
    for group in groups {
        bytes.extend_from_slice(&group.scale.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(crate::piece::ALIGN_USIZE), 0);
}
