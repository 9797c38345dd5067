//! Packing: golden bytes, error bounds, and what is refused.

use half::f16;
use moa_format::{DType, FormatError, MAX_PIECE_BYTES, PieceLayout, pack, split_rows, unpack};

use crate::fixture::Random;

const ALL: [DType; 4] = [DType::Q4, DType::Q8, DType::F16, DType::F32];

#[test]
fn a_q4_piece_is_as_documented() {
    // w = 0.5 * (i mod 16) - 4: f16 0.5 is 0x3800, f16 -4 is 0xC400.
    let weights: Vec<f32> = (0..32u8).map(|i| 0.5 * f32::from(i % 16) - 4.0).collect();
    let piece = pack(DType::Q4, &weights, 32).unwrap();
    let mut golden = vec![
        0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC,
        0xFE,
    ];
    golden.resize(256, 0);
    golden.extend([0x00, 0x38, 0x00, 0xC4]);
    assert_eq!(piece.bytes, golden);
    assert_eq!(piece.max_error, 0.0);
    assert_eq!(unpack(DType::Q4, &piece.bytes, 1, 32).unwrap(), weights);
}

#[test]
fn a_q8_piece_is_as_documented() {
    // w = 0.25 * i but for the first, -31.75 = 0.25 * -127: f16 0.25 is 0x3400.
    let mut weights: Vec<f32> = (0..32u8).map(|i| 0.25 * f32::from(i)).collect();
    weights[0] = -31.75;
    let piece = pack(DType::Q8, &weights, 32).unwrap();
    let mut golden: Vec<u8> = (0..32).collect();
    golden[0] = 0x81;
    golden.resize(256, 0);
    golden.extend([0x00, 0x34, 0, 0]);
    assert_eq!(piece.bytes, golden, "an odd number of scales is padded");
    assert_eq!(piece.max_error, 0.0);
    assert_eq!(unpack(DType::Q8, &piece.bytes, 1, 32).unwrap(), weights);
}

#[test]
fn halves_and_floats_are_as_documented() {
    let weights = [1.0, -2.0, 0.5];
    let piece = pack(DType::F16, &weights, 3).unwrap();
    assert_eq!(piece.bytes, [0x00, 0x3C, 0x00, 0xC0, 0x00, 0x38, 0, 0]);
    assert_eq!(unpack(DType::F16, &piece.bytes, 1, 3).unwrap(), weights);
    let piece = pack(DType::F32, &weights, 1).unwrap();
    assert_eq!(
        piece.bytes,
        [0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0, 0, 0, 0, 0x3F]
    );
    assert_eq!(unpack(DType::F32, &piece.bytes, 3, 1).unwrap(), weights);
}

#[test]
fn layouts_count_words_padding_and_scales() {
    let sizes = |dtype, rows, cols| {
        let l = PieceLayout::of(dtype, rows, cols).unwrap();
        (l.values_bytes, l.scales_offset, l.scales_bytes, l.bytes)
    };
    assert_eq!(sizes(DType::Q4, 3, 64), (96, 256, 24, 280));
    assert_eq!(sizes(DType::Q4, 8, 64), (256, 256, 64, 320));
    assert_eq!(sizes(DType::Q8, 3, 32), (96, 256, 8, 264));
    assert_eq!(sizes(DType::F16, 1, 3), (8, 8, 0, 8));
    assert_eq!(sizes(DType::F32, 2, 3), (24, 24, 0, 24));
    for dtype in ALL {
        assert!(PieceLayout::of(dtype, 0, 32).is_err());
        assert!(PieceLayout::of(dtype, 1, 0).is_err());
    }
    assert!(PieceLayout::of(DType::Q4, 1, 33).is_err());
    assert!(PieceLayout::of(DType::Q8, 1, 16).is_err());
    assert_eq!(DType::Q4.for_cols(33), DType::F16);
    assert_eq!(DType::Q4.for_cols(64), DType::Q4);
    assert!(PieceLayout::of(DType::F32, u32::MAX, u32::MAX).is_err());
    assert!(PieceLayout::of(DType::Q4, u32::MAX, u32::MAX - 31).is_err());
}

#[test]
fn packed_sizes_are_those_of_the_layout_and_errors_are_measured() {
    let mut random = Random(5);
    for dtype in ALL {
        for (rows, cols) in [(1, 32), (3, 32), (5, 96), (7, 224)] {
            let weights: Vec<f32> = (0..rows * cols).map(|_| random.normal() * 0.1).collect();
            let piece = pack(dtype, &weights, cols).unwrap();
            let layout = PieceLayout::of(dtype, rows, cols).unwrap();
            assert_eq!(piece.bytes.len() as u64, layout.bytes);
            let back = unpack(dtype, &piece.bytes, rows, cols).unwrap();
            let errors = weights.iter().zip(&back).map(|(a, b)| (a - b).abs());
            let max_error = errors.fold(0f32, f32::max);
            assert_eq!(max_error, piece.max_error, "{dtype:?}");
            let bound = match dtype {
                DType::Q4 => 0.04,
                DType::Q8 => 0.0025,
                DType::F16 => 0.0002,
                DType::F32 => 0.0,
            };
            assert!(max_error <= bound, "{dtype:?} {max_error}");
            // A second trip changes nothing but, in q4, the choice among equals.
            if dtype != DType::Q4 {
                let again = pack(dtype, &back, cols).unwrap();
                assert_eq!(unpack(dtype, &again.bytes, rows, cols).unwrap(), back);
            }
        }
    }
}

/// What `pack` must beat: the range spread evenly.
fn naive_q4_error(group: &[f32]) -> f64 {
    let low = group.iter().copied().fold(f32::INFINITY, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (low, scale) = (
        f16::from_f32(low).to_f32(),
        f16::from_f32((high - low) / 15.0).to_f32(),
    );
    let error = |w: f32| {
        let q = ((w - low) / scale).round().clamp(0.0, 15.0);
        f64::from(scale * q + low - w).powi(2)
    };
    group.iter().map(|&w| error(w)).sum()
}

fn error(weights: &[f32], back: &[f32]) -> f64 {
    let errors = weights.iter().zip(back).map(|(a, b)| f64::from(a - b));
    errors.map(|error| error * error).sum()
}

#[test]
fn q4_is_never_worse_than_the_even_spread_and_clearly_better_on_average() {
    let mut random = Random(9);
    let (mut ours, mut naive) = (0.0, 0.0);
    for round in 0..500 {
        let offset = if round % 3 == 0 { 1.0 } else { 0.0 };
        let mut weights: Vec<f32> = (0..32).map(|_| random.normal() * 0.05 + offset).collect();
        if round % 5 == 0 {
            weights[7] *= 4.0;
        }
        let piece = pack(DType::Q4, &weights, 32).unwrap();
        let back = unpack(DType::Q4, &piece.bytes, 1, 32).unwrap();
        let (our, even) = (error(&weights, &back), naive_q4_error(&weights));
        assert!(our <= even * 1.000_01, "round {round}: {our} over {even}");
        ours += our;
        naive += even;
    }
    assert!(ours < 0.85 * naive, "{ours} of {naive}");
}

#[test]
fn extreme_groups_survive() {
    for weights in [
        [0.0; 32],
        [-0.0; 32],
        [3.25; 32],
        [60_000.0; 32],
        [1e-7; 32],
        [f32::MIN_POSITIVE; 32],
        std::array::from_fn(|i| if i % 2 == 0 { -65_000.0 } else { 65_000.0 }),
        std::array::from_fn(|i| if i == 31 { 1e-6 } else { 0.0 }),
    ] {
        let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
        for (dtype, bound) in [(DType::Q4, 1e-3), (DType::Q8, 5e-3)] {
            let piece = pack(dtype, &weights, 32).unwrap();
            let back = unpack(dtype, &piece.bytes, 1, 32).unwrap();
            assert!(back.iter().all(|w| w.is_finite()));
            // Half a step of f16's smallest numbers is 3e-8; a q8 value is up to 127 such steps.
            assert!(
                piece.max_error <= bound * largest + 4e-6,
                "{dtype:?} {weights:?}: {}",
                piece.max_error
            );
        }
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused_by_place() {
    for dtype in ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut weights = vec![0.5; 64];
            weights[37] = bad;
            match pack(dtype, &weights, 32) {
                Err(FormatError::Unrepresentable { index: 37, .. }) => {}
                other => panic!("{dtype:?} {bad}: {other:?}"),
            }
        }
    }
    for (dtype, bad) in [(DType::F16, 7e4), (DType::Q4, -7e4), (DType::Q8, 1e7)] {
        let mut weights = vec![0.5f32; 64];
        weights[33..].fill(bad);
        weights[32] = bad;
        let error = pack(dtype, &weights, 32).unwrap_err();
        assert!(
            matches!(error, FormatError::Unrepresentable { index: 32.., .. }),
            "{error}"
        );
    }
    assert!(pack(DType::Q4, &[0.0; 40], 20).is_err(), "no whole groups");
    assert!(pack(DType::F32, &[0.0; 5], 2).is_err(), "no whole rows");
    assert!(pack(DType::F32, &[], 2).is_err());
    assert!(pack(DType::F32, &[0.0], 0).is_err());
}

#[test]
fn pieces_of_another_size_are_refused() {
    for dtype in ALL {
        let piece = pack(dtype, &[1.0; 96], 32).unwrap().bytes;
        assert!(unpack(dtype, &piece, 3, 32).is_ok());
        assert!(unpack(dtype, &piece[1..], 3, 32).is_err());
        assert!(unpack(dtype, &piece, 5, 32).is_err());
        assert!(unpack(dtype, &[], 3, 32).is_err());
        assert!(unpack(dtype, &piece, u32::MAX, u32::MAX).is_err());
    }
}

#[test]
fn large_tensors_are_split_by_rows() {
    assert_eq!(split_rows(DType::Q4, 576, 576).unwrap(), [576]);
    // SmolLM2's embedding: 49,152 rows of 576 in q8 take 612 bytes each, 41,120 to a piece.
    assert_eq!(
        split_rows(DType::Q8, 49_152, 576).unwrap(),
        [41_088, 8_064],
        "a multiple of 64"
    );
    let most = u64::from(MAX_PIECE_BYTES);
    for (dtype, rows, cols) in [
        (DType::Q4, 151_936, 3584),
        (DType::F32, 1000, 100_000),
        (DType::F16, 7, 12_582_912),
        (DType::F32, 1_000_000, 1),
    ] {
        let pieces = split_rows(dtype, rows, cols).unwrap();
        assert_eq!(pieces.iter().sum::<u32>(), rows);
        for &rows in &pieces {
            assert!(PieceLayout::of(dtype, rows, cols).unwrap().bytes <= most);
        }
    }
    assert!(split_rows(DType::F32, 2, 100_000_000).is_err());
    assert!(split_rows(DType::F32, 0, 1).is_err());
}
