//! GGUF blocks: exact values where exactness is promised, and what is refused.

use half::f16;
use moa_format::{BlockType, DType, FormatError, repack, unpack};

use crate::fixture::Random;

const LAYOUTS: [(BlockType, usize, usize); 4] = [
    (BlockType::Q4_0, 32, 18),
    (BlockType::Q4_1, 32, 20),
    (BlockType::Q8_0, 32, 34),
    (BlockType::Q4K, 256, 144),
];

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The weights of a block, written after ggml's `dequantize_row_*`, with its pointers and its order.
fn dequantize(block_type: BlockType, block: &[u8]) -> Vec<f32> {
    let mut out = Vec::new();
    match block_type {
        BlockType::Q4_0 | BlockType::Q4_1 => {
            let d = half(block);
            let (m, qs) = if block_type == BlockType::Q4_1 {
                (Some(half(&block[2..])), &block[4..])
            } else {
                (None, &block[2..])
            };
            let value = |q: u8| m.map_or((f32::from(q) - 8.0) * d, |m| f32::from(q) * d + m);
            out.extend(qs.iter().map(|byte| value(byte & 0x0F)));
            out.extend(qs.iter().map(|byte| value(byte >> 4)));
        }
        BlockType::Q8_0 => {
            let d = half(block);
            out.extend(block[2..].iter().map(|&q| f32::from(q as i8) * d));
        }
        BlockType::Q4K => {
            let (d, d_min) = (half(block), half(&block[2..]));
            let scales = &block[4..16];
            let get = |j: usize| {
                if j < 4 {
                    (scales[j] & 63, scales[j + 4] & 63)
                } else {
                    (
                        (scales[j + 4] & 0xF) | ((scales[j - 4] >> 6) << 4),
                        (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4),
                    )
                }
            };
            let (mut q, mut is) = (&block[16..], 0);
            for _ in 0..4 {
                let ((sc1, m1), (sc2, m2)) = (get(is), get(is + 1));
                let (d1, d2) = (d * f32::from(sc1), d * f32::from(sc2));
                let (m1, m2) = (d_min * f32::from(m1), d_min * f32::from(m2));
                out.extend(q[..32].iter().map(|b| d1 * f32::from(b & 0xF) - m1));
                out.extend(q[..32].iter().map(|b| d2 * f32::from(b >> 4) - m2));
                q = &q[32..];
                is += 2;
            }
        }
    }
    out
}

/// Random blocks with ordinary scales.
fn blocks(block_type: BlockType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        let mut block = random.bytes(block_type.bytes());
        let mut set = |at: usize| {
            let scale = f16::from_f32(random.normal() * 0.01).to_le_bytes();
            block[at..at + 2].copy_from_slice(&scale);
        };
        set(0);
        if matches!(block_type, BlockType::Q4_1 | BlockType::Q4K) {
            set(2);
        }
        bytes.extend(block);
    }
    bytes
}

#[test]
fn sizes_are_those_of_gguf() {
    for (block_type, weights, bytes) in LAYOUTS {
        assert_eq!((block_type.weights(), block_type.bytes()), (weights, bytes));
    }
}

#[test]
fn lossless_types_keep_every_value_and_q4_k_says_what_it_loses() {
    let mut random = Random(11);
    for (block_type, weights, block_bytes) in LAYOUTS {
        let (rows, cols) = (3, 512);
        let raw = blocks(block_type, rows * cols / weights, &mut random);
        let piece = repack(block_type, &raw, 512).unwrap();
        let back = unpack(block_type.dtype(), &piece.bytes, 3, 512).unwrap();
        let source: Vec<f32> = raw
            .chunks(block_bytes)
            .flat_map(|block| dequantize(block_type, block))
            .collect();
        let errors = source.iter().zip(&back).map(|(a, b)| (a - b).abs());
        let max_error = errors.fold(0f32, f32::max);
        assert_eq!(max_error, piece.max_error, "{block_type:?}");
        if block_type.is_lossless() {
            assert_eq!(back, source, "{block_type:?}");
        } else {
            let largest = source.iter().fold(0f32, |m, w| m.max(w.abs()));
            assert!(max_error > 0.0 && max_error < largest / 1000.0);
        }
    }
}

#[test]
fn a_q4_0_block_is_reordered_as_documented() {
    // d = 1 (0x3C00); byte i holds weight i below and weight i + 16 above.
    let mut block = vec![0x00, 0x3C];
    block.extend((0..16).map(|i: u8| i | (15 - i) << 4));
    let piece = repack(BlockType::Q4_0, &block, 32).unwrap();
    assert_eq!(
        piece.bytes[..16],
        [
            0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45,
            0x23, 0x01
        ]
    );
    assert_eq!(piece.bytes[256..], [0x00, 0x3C, 0x00, 0xC8], "minimum -8");
    let back = unpack(DType::Q4, &piece.bytes, 1, 32).unwrap();
    assert_eq!(back[0], -8.0);
    assert_eq!(back[16], 7.0);
}

#[test]
fn every_q4_0_scale_is_exact_or_refused() {
    for bits in 0..=u16::MAX {
        let d = f16::from_bits(bits);
        let mut block = d.to_le_bytes().to_vec();
        block.extend([0xF0; 16]);
        match repack(BlockType::Q4_0, &block, 32) {
            Ok(piece) => {
                let back = unpack(DType::Q4, &piece.bytes, 1, 32).unwrap();
                assert_eq!(back, dequantize(BlockType::Q4_0, &block), "{d}");
            }
            Err(FormatError::Unrepresentable { .. }) => {
                assert!(!d.is_finite() || d.to_f32().abs() > 8188.0, "{d}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn damaged_scales_and_wrong_lengths_are_refused() {
    let mut random = Random(13);
    for (block_type, weights, block_bytes) in LAYOUTS {
        let cols = 512;
        let raw = blocks(block_type, cols / weights, &mut random);
        assert!(repack(block_type, &raw, 512).is_ok());
        assert!(repack(block_type, &raw[1..], 512).is_err());
        assert!(repack(block_type, &raw[block_bytes..], 512).is_err());
        assert!(repack(block_type, &raw, 48).is_err());
        assert!(repack(block_type, &raw, 0).is_err());
        assert!(repack(block_type, &[], 512).is_err());
        for bad in [f16::NAN, f16::INFINITY] {
            let mut damaged = raw.clone();
            let at = raw.len() - block_bytes;
            damaged[at..at + 2].copy_from_slice(&bad.to_le_bytes());
            match repack(block_type, &damaged, 512) {
                Err(FormatError::Unrepresentable { index, .. }) => {
                    assert_eq!(index, cols - weights);
                }
                other => panic!("{block_type:?}: {other:?}"),
            }
        }
    }
    // 63 * 2048 exceeds f16.
    let mut block = blocks(BlockType::Q4K, 1, &mut random);
    block[..2].copy_from_slice(&f16::from_f32(2048.0).to_le_bytes());
    block[4] = 63;
    assert!(repack(BlockType::Q4K, &block, 256).is_err());
}
