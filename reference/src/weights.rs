//! What a stored weight piece means, in f64, and random weights for tests: the twin of the kernels' `weights_q4`, `_q8`, `_f16` and `_f32` parts,
//! written from the layout's description and not from `moa-format`'s code, so that the two check each other.

/// How a piece is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Nibbles, f16 scale and minimum for each 32.
    Q4,
    /// Signed bytes, f16 scale for each 32.
    Q8,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

/// Weights that share a scale.
const GROUP: usize = 32;
/// Scales begin at a multiple of this after the values.
const ALIGN: usize = 256;

/// The weights of a piece of whole rows, `count` in all.
pub fn dequantize(stored: Stored, bytes: &[u8], count: usize) -> Vec<f64> {
    let word = |index: usize| {
        let at = index * 4;
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let half =
        |index: usize| f16_to_f64(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]));
    let mut weights = Vec::with_capacity(count);
    for i in 0..count {
        weights.push(match stored {
            Stored::Q4 => {
                let scales = (count / 2).next_multiple_of(ALIGN) / 2;
                let q = word(i / 8) >> (4 * (i % 8)) & 15;
                let group = i / GROUP;
                half(scales + 2 * group) * f64::from(q) + half(scales + 2 * group + 1)
            }
            Stored::Q8 => {
                let scales = count.next_multiple_of(ALIGN) / 2;
                half(scales + i / GROUP) * f64::from(bytes[i] as i8)
            }
            Stored::F16 => half(i),
            Stored::F32 => f64::from(f32::from_bits(word(i))),
        });
    }
    weights
}

/// A tensor of `len` random weights with `inputs` columns, the same for the same name: norms about 1, others so that what goes through keeps its
/// size times about `gain`.
pub fn random(name: &str, len: usize, inputs: usize, gain: f32) -> Vec<f32> {
    let mut state = name.bytes().fold(7u32, |state, byte| {
        state.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let norm = name.contains("norm");
    let scale = if norm {
        0.1
    } else {
        gain / (inputs as f32).sqrt()
    };
    let shift = if norm { 1.0 } else { 0.0 };
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale + shift
        })
        .collect()
}

/// The value of an IEEE half.
pub fn f16_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let mantissa = f64::from(bits & 1023) / 1024.0;
    sign * match exponent {
        0 => mantissa * 2f64.powi(-14),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_by_hand() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 2f64.powi(-24)),
            (0x3555, 0.333_251_953_125),
        ] {
            assert_eq!(f16_to_f64(bits), value);
        }
        assert!(f16_to_f64(0x7e00).is_nan() && f16_to_f64(0xfc00) == f64::NEG_INFINITY);
    }

    #[test]
    fn groups_by_hand() {
        // One group: nibbles 0..15 twice, scale 0.5, minimum -2.
        let mut q4 = vec![0u8; 256 + 4];
        for pair in 0..16 {
            q4[pair] = ((2 * pair) % 16 + ((2 * pair + 1) % 16) * 16) as u8;
        }
        q4[256..260].copy_from_slice(&[0x00, 0x38, 0x00, 0xc0]);
        let weights = dequantize(Stored::Q4, &q4, 32);
        assert_eq!(weights[..4], [-2.0, -1.5, -1.0, -0.5]);
        assert_eq!(weights[31], 5.5);
        let mut q8 = vec![0u8; 256 + 4];
        q8[0] = 0x80;
        q8[31] = 127;
        q8[256..258].copy_from_slice(&[0x00, 0x40]);
        let weights = dequantize(Stored::Q8, &q8, 32);
        assert_eq!((weights[0], weights[31]), (-256.0, 254.0));
        assert_eq!(dequantize(Stored::F32, &1.5f32.to_le_bytes(), 1), [1.5]);
        assert_eq!(dequantize(Stored::F16, &[0x00, 0x3c], 1), [1.0]);
    }
}
