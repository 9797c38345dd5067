//! A weight as the checkpoint stores it: its type, its shape and its raw bytes, with the values on request.
//!
//! The raw blocks stay within reach so that a writer can repack them without loss; this module deliberately
//! converts to f32 and to nothing else.

use std::borrow::Cow;
use std::fmt;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use crate::{ModelError, Result};

/// How a checkpoint stores a tensor's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// Blocks of 32: f16 scale, 4-bit values minus 8.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4-bit values.
    Q4_1,
    /// Blocks of 32: f16 scale, 5-bit values minus 16.
    Q5_0,
    /// Blocks of 32: f16 scale and minimum, 5-bit values.
    Q5_1,
    /// Blocks of 32: f16 scale, signed bytes.
    Q8_0,
    /// Blocks of 256: 8 groups of 32 with 6-bit scales and minimums, 4-bit values.
    Q4K,
    /// Blocks of 256: 8 groups of 32 with 6-bit scales and minimums, 5-bit values.
    Q5K,
    /// Blocks of 256: 16 groups of 16 with 8-bit scales, 6-bit values.
    Q6K,
}

/// The types that both importers name in their refusals.
pub(crate) const GGUF_TYPES: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

impl SourceType {
    /// The name as GGUF tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Weights of one block; a row is a whole number of blocks.
    pub const fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bits that a weight takes, its share of the scales included.
    pub fn bits_per_weight(self) -> f64 {
        f64::from(u32::try_from(self.block_bytes() * 8).unwrap_or(u32::MAX))
            / f64::from(u32::try_from(self.block_weights()).unwrap_or(1))
    }

    /// Whether weights share scales in blocks.
    pub const fn is_quantized(self) -> bool {
        self.block_weights() > 1
    }

    /// Bytes of `weights` weights, or `None` where they are no whole number of blocks or overflow.
    pub(crate) fn bytes_of(self, weights: u64) -> Option<u64> {
        let block = self.block_weights() as u64;
        if weights.is_multiple_of(block) {
            (weights / block).checked_mul(self.block_bytes() as u64)
        } else {
            None
        }
    }

    /// GGUF's number of the type, or the name of a type that is known and not read here.
    pub(crate) fn from_gguf(number: u32) -> std::result::Result<Self, String> {
        Ok(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => {
                return Err(match other {
                    9 => "Q8_1".into(),
                    10 => "Q2_K".into(),
                    11 => "Q3_K".into(),
                    15 => "Q8_K".into(),
                    16 => "IQ2_XXS".into(),
                    17 => "IQ2_XS".into(),
                    18 => "IQ3_XXS".into(),
                    19 => "IQ1_S".into(),
                    20 => "IQ4_NL".into(),
                    21 => "IQ3_S".into(),
                    22 => "IQ2_S".into(),
                    23 => "IQ4_XS".into(),
                    24..=28 => "an integer or F64 type".into(),
                    29 => "IQ1_M".into(),
                    34 => "TQ1_0".into(),
                    35 => "TQ2_0".into(),
                    39 => "MXFP4".into(),
                    number => format!("number {number}"),
                });
            }
        })
    }

    const fn ggml(self) -> Option<GgmlDType> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        })
    }
}

impl fmt::Display for SourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some rows of a weight, row-major, as the checkpoint stores them.
///
/// Q and K of GGUF files are already in Hugging Face's row order.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceTensor {
    pub(crate) name: String,
    pub(crate) shape: [usize; 2],
    pub(crate) source_type: SourceType,
    pub(crate) bytes: Vec<u8>,
}

impl SourceTensor {
    /// Canonical (Hugging Face) name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows and columns; norms and biases are one row.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How the bytes are to be read.
    pub fn source_type(&self) -> SourceType {
        self.source_type
    }

    /// Whole blocks, row after row: `rows * cols / block_weights * block_bytes` bytes, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.shape[1] / self.source_type.block_weights() * self.source_type.block_bytes()
    }

    /// The weights, row-major. Refuses NaN and infinities.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let weights = match self.source_type.ggml() {
            Some(dtype) => self.dequantize(dtype)?,
            None => self.widen(),
        };
        // A sum of zeros is zero, and anything that is not finite makes it NaN: one pass the compiler vectorizes.
        let poison: f32 = weights.iter().map(|w| w * 0.0).sum();
        if poison == 0.0 {
            return Ok(weights);
        }
        let (at, &value) = weights
            .iter()
            .enumerate()
            .find(|(_, w)| !w.is_finite())
            .unwrap_or((0, &f32::NAN));
        Err(ModelError::NonFinite {
            name: self.name.clone(),
            row: at / self.shape[1].max(1),
            value,
        })
    }

    fn widen(&self) -> Vec<f32> {
        let (pairs, _) = self.bytes.as_chunks::<2>();
        match self.source_type {
            SourceType::F16 => pairs
                .iter()
                .map(|&b| f16::from_le_bytes(b).to_f32())
                .collect(),
            SourceType::Bf16 => pairs
                .iter()
                .map(|&b| bf16::from_le_bytes(b).to_f32())
                .collect(),
            _ => self
                .bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
        }
    }

    fn dequantize(&self, dtype: GgmlDType) -> Result<Vec<f32>> {
        let problem = |got: String| {
            ModelError::unsupported(
                format!("quantization of tensor {}", self.name),
                got,
                GGUF_TYPES,
            )
        };
        // candle asserts that blocks are aligned to two bytes; every allocator of note aligns to more.
        let aligned: Cow<'_, [u8]> = Cow::Borrowed(&self.bytes);
        let blocks = dtype.from_data(aligned);
        match blocks.dequantize(self.shape[0] * self.shape[1]) {
            Ok(CpuStorage::F32(weights)) => Ok(weights),
            Ok(_) => Err(problem(format!("{dtype:?} in a type other than f32"))),
            Err(error) => Err(problem(format!("{dtype:?} ({error})"))),
        }
    }
}

impl fmt::Debug for SourceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.shape;
        write!(
            f,
            "SourceTensor({} {} [{rows}, {cols}])",
            self.name, self.source_type
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTIZED: [SourceType; 8] = [
        SourceType::Q4_0,
        SourceType::Q4_1,
        SourceType::Q5_0,
        SourceType::Q5_1,
        SourceType::Q8_0,
        SourceType::Q4K,
        SourceType::Q5K,
        SourceType::Q6K,
    ];

    fn tensor(source_type: SourceType, shape: [usize; 2], bytes: Vec<u8>) -> SourceTensor {
        SourceTensor {
            name: "t".into(),
            shape,
            source_type,
            bytes,
        }
    }

    #[test]
    fn block_sizes_are_those_of_candle() {
        for ty in QUANTIZED {
            let dtype = ty.ggml().unwrap();
            assert_eq!(ty.block_weights(), dtype.block_size(), "{ty}");
            assert_eq!(ty.block_bytes(), dtype.type_size(), "{ty}");
        }
        assert_eq!(SourceType::Q4_1.bits_per_weight(), 5.0);
        assert_eq!(SourceType::Q4K.bits_per_weight(), 4.5);
    }

    #[test]
    fn floats_widen_exactly() {
        let values = [1.5f32, -0.25, 0.0, 65504.0];
        let f16s = values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        assert_eq!(
            tensor(SourceType::F16, [2, 2], f16s).to_f32().unwrap(),
            values
        );
        let bf16s = values[..3]
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect();
        assert_eq!(
            tensor(SourceType::Bf16, [1, 3], bf16s).to_f32().unwrap(),
            values[..3]
        );
        let f32s = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            tensor(SourceType::F32, [4, 1], f32s).to_f32().unwrap(),
            values
        );
    }

    /// Blocks written out by hand: scale 0.5, minimum -1, nibbles i for the low and 15 - i for the high half.
    #[test]
    fn q4_blocks_are_scale_times_nibble() {
        let nibbles: Vec<u8> = (0..16).map(|i| i | ((15 - i) << 4)).collect();
        let half = f16::from_f32(0.5).to_le_bytes();
        let q4_1 = [&half[..], &f16::from_f32(-1.0).to_le_bytes(), &nibbles].concat();
        let values = tensor(SourceType::Q4_1, [1, 32], q4_1).to_f32().unwrap();
        let q4_0 = [&half[..], &nibbles].concat();
        let centered = tensor(SourceType::Q4_0, [1, 32], q4_0).to_f32().unwrap();
        for i in 0..16u8 {
            let (low, high) = (usize::from(i), usize::from(i) + 16);
            assert_eq!(values[low], 0.5 * f32::from(i) - 1.0);
            assert_eq!(values[high], 0.5 * f32::from(15 - i) - 1.0);
            assert_eq!(centered[low], 0.5 * (f32::from(i) - 8.0));
        }
        let q8_0 = [
            &half[..],
            &(0..32u8).map(|i| i.wrapping_sub(16)).collect::<Vec<_>>(),
        ]
        .concat();
        assert_eq!(
            tensor(SourceType::Q8_0, [1, 32], q8_0).to_f32().unwrap()[1],
            -7.5
        );
    }

    #[test]
    fn weights_that_are_not_finite_are_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let bytes = [1.0, 2.0, bad, 4.0]
                .iter()
                .flat_map(|v: &f32| v.to_le_bytes())
                .collect();
            let error = tensor(SourceType::F32, [2, 2], bytes).to_f32().unwrap_err();
            assert!(
                matches!(error, ModelError::NonFinite { row: 1, .. }),
                "{error}"
            );
            assert!(error.hint().is_some());
        }
        let infinite_scale = [&f16::INFINITY.to_le_bytes()[..], &[1; 32]].concat();
        assert!(
            tensor(SourceType::Q8_0, [1, 32], infinite_scale)
                .to_f32()
                .is_err()
        );
    }

    #[test]
    fn unread_types_have_names() {
        assert_eq!(SourceType::from_gguf(10).unwrap_err(), "Q2_K");
        assert_eq!(SourceType::from_gguf(23).unwrap_err(), "IQ4_XS");
        assert_eq!(SourceType::from_gguf(77).unwrap_err(), "number 77");
        assert!(SourceType::from_gguf(14).is_ok());
    }
}
