//! Inputs and outputs as codes: bytes with a scale for 16 columns, in the order of the weights that they meet.

use bytemuck::{bytes_of, cast_slice};
use moa_mask::abi::ProjectParams;
use moa_reference::compare::{Tolerance, compare};
use moa_reference::merge_lse::{Part, merge_lse};
use moa_reference::project::project;
use moa_shaders::{Dialect, HeadShape, Kernel, Lanes, VectorType, WeightType};
use moa_tests::gpu::{Data, POISON, TestGpu, floats, packed, reductions, test_gpu_in};
use moa_tests::random::Random;

use crate::attention::list_of_parts;
use crate::file::File;
use crate::fused::{EPS, GATE_UP, PROJECT, PROJECT_CASES, SHAPE};
use crate::gates::Gates;
use crate::state;

/// Sums of magnitude 3, divided by their weights.
const MERGE: Tolerance = Tolerance::new(1e-5, 1e-5);
const TYPES: [WeightType; 2] = [WeightType::Q4, WeightType::Q8];

/// Word and byte of a column's code, and the word of its step, which the sum follows.
fn place(weight: WeightType, column: usize) -> (usize, usize, usize) {
    let (half, inner) = (column / 16 % 2, column % 8);
    let (word, byte) = match weight {
        WeightType::Q4 => (inner % 2, inner / 2),
        _ => (inner / 4, inner % 4),
    };
    let block = 12 * (column / 32);
    let eight = column / 8 % 2;
    (
        block + 4 * half + 2 * eight + word,
        byte,
        block + 8 + 2 * half,
    )
}

/// Values of which nothing is left to round, as codes.
fn encoded(weight: WeightType, values: &[f32]) -> Vec<u32> {
    let mut words = vec![0u32; values.len().div_ceil(32) * 12];
    for (half, group) in values.chunks(16).enumerate() {
        let step = group.iter().fold(0.0f32, |top, value| top.max(value.abs())) / 127.0;
        for (index, value) in group.iter().enumerate() {
            let (word, byte, scale) = place(weight, 16 * half + index);
            #[expect(clippy::cast_possible_truncation, reason = "-127 to 127")]
            let code = (value / step).round() as i8;
            words[word] |= u32::from(code.cast_unsigned()) << (8 * byte);
            words[scale] = step.to_bits();
            words[scale + 1] = group.iter().sum::<f32>().to_bits();
        }
    }
    words
}

/// Inputs of which nothing is left to round: every half of a group in steps of its own.
fn exact_inputs(random: &mut Random, cols: u32) -> Vec<f32> {
    let mut step = 1.0;
    (0..cols)
        .map(|column| {
            if column % 16 == 0 {
                step = [1.0 / 128.0, 1.0 / 32.0, 1.0 / 8.0][random.below(3) as usize];
                return 127.0 * step;
            }
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let code = random.below(255) as f32 - 127.0;
            code * step
        })
        .collect()
}

/// Whether codes say what the twin says: steps of a 127th of each largest, every value within half of one, and the sums.
fn check_codes(
    label: &str,
    weight: WeightType,
    words: &[u32],
    expected: &[f64],
    tolerance: Tolerance,
) {
    let signed = |word: u32, byte: usize| f64::from(word.to_le_bytes()[byte].cast_signed());
    let near = |value: f64, column: usize| {
        let (word, byte, scale) = place(weight, column);
        let step = f64::from(f32::from_bits(words[scale]));
        let error = (step * signed(words[word], byte) - value).abs();
        error <= 0.5001 * step + tolerance.abs + tolerance.rel * value.abs()
    };
    for (column, value) in expected.iter().enumerate() {
        assert!(near(*value, column), "{label}: column {column}");
    }
    let wrong = (0..expected.len()).filter(|column| !near(-expected[*column], *column));
    assert!(
        wrong.count() > expected.len() / 2,
        "{label}: the other sign passed"
    );
    for (half, group) in expected.chunks(16).enumerate() {
        let largest = group.iter().fold(0.0f64, |top, value| top.max(value.abs()));
        let step = f32::from_bits(words[place(weight, 16 * half).2]);
        let error = (127.0 * f64::from(step) - largest).abs();
        let most = tolerance.abs + (tolerance.rel + 1e-6) * largest;
        assert!(error <= most, "{label}: half {half} has steps of {step}");
    }
    let halves = expected.len() / 16;
    let sums: Vec<f32> = (0..halves)
        .map(|half| f32::from_bits(words[place(weight, 16 * half).2 + 1]))
        .collect();
    let exact: Vec<f64> = expected
        .chunks(16)
        .map(|group| group.iter().sum())
        .collect();
    let wide = Tolerance::new(16.0 * tolerance.abs, 16.0 * tolerance.rel);
    let error = compare(&sums, &exact, wide).assert(label);
    println!("{label}: sums {error:.2e}");
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn codes_are_multiplied_as_the_values_that_they_stand_for() {
    let mut cases = PROJECT_CASES
        .map(|(pieces, cols, _)| (pieces, cols))
        .to_vec();
    // Rows of one to nine blocks a thread.
    cases.extend([(&[6][..], 4864), (&[3], 8192), (&[2], 17_408)]);
    for dialect in reductions() {
        for weight in TYPES {
            let mut largest = 0.0f64;
            for &(pieces, cols) in &cases {
                for lanes in [Lanes::L32One, Lanes::L64One] {
                    largest = largest.max(check_project(dialect, lanes, weight, pieces, cols));
                }
            }
            let name = weight.name();
            println!(
                "project of codes, {name}, {}: {largest:.2e}",
                dialect.variant
            );
        }
    }
}

fn check_project(
    dialect: Dialect,
    lanes: Lanes,
    weight: WeightType,
    pieces: &[u32],
    cols: u32,
) -> f64 {
    let mut random = Random::new(u64::from(pieces[0] * cols));
    let mut file = File::default();
    let (mut weights, mut places) = (Vec::new(), Vec::new());
    for &rows in pieces {
        let (at, scales_at, own) = file.matrix(&mut random, weight, rows, cols);
        weights.extend(own);
        places.push((at, scales_at - at));
    }
    let x = exact_inputs(&mut random, cols);
    let rows: u32 = pieces.iter().sum();
    let params = ProjectParams {
        rows,
        cols,
        row_offset: 3,
        piece_rows: pieces[0],
        piece_step: places.get(1).map_or(0, |(at, _)| at - places[0].0),
        scales_step: places[0].1,
        last_scales_step: places[places.len() - 1].1,
        eps: EPS,
    };
    let before = random.spiked(rows as usize + 5, 1.0);
    let own = 3..3 + rows as usize;
    let expected = project(&x, None, &weights, Some(&before[own.clone()]));
    let kernel = Kernel::Project {
        weight,
        norm: None,
        add: true,
        codes: true,
        lanes,
    };
    let label = format!("{} {pieces:?} x {cols}", kernel.label_in(SHAPE, dialect));
    let run_as = |constants: bool, tokens: u32, codes: &[u32]| {
        let mut gpu = test_gpu_in(dialect);
        let run = if constants {
            TestGpu::run_with_constants
        } else {
            TestGpu::run
        };
        let outputs = run(
            &mut gpu,
            kernel,
            SHAPE,
            (rows.div_ceil(lanes.rows()), 1),
            &[
                ("params", Data::Bytes(bytes_of(&params))),
                ("state", Data::U32(&state(7, tokens))),
                ("x", Data::U32(codes)),
                ("values", Data::Bytes(&file.bytes)),
                ("words", Data::Bytes(&file.bytes)),
                ("y", Data::F32(&before)),
            ],
        );
        floats(&outputs["y"])
    };
    let run = |tokens, codes: &[u32]| run_as(false, tokens, codes);
    let y = run(1, &encoded(weight, &x));
    assert_eq!(
        run_as(true, 1, &encoded(weight, &x)),
        y,
        "{label}: constants in the source change nothing"
    );
    let error = compare(&y[own.clone()], &expected, PROJECT).assert(&label);
    assert!(
        y[..3] == before[..3] && y[own.end..] == before[own.end..],
        "{label}: rows of others stay"
    );
    assert_eq!(
        run(0, &encoded(weight, &x)),
        before,
        "{label}: nothing in flight"
    );
    let other = TYPES.into_iter().find(|other| *other != weight).unwrap();
    let wrong = run(1, &encoded(other, &x));
    assert!(
        !compare(&wrong[own], &expected, PROJECT).passed(),
        "{label}: the other order passed"
    );
    error
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn gates_leave_codes() {
    let mut list = reductions();
    list.push(packed());
    for (dialect, weight) in list
        .into_iter()
        .flat_map(|dialect| TYPES.map(|weight| (dialect, weight)))
    {
        for (rows, lanes, kind) in [
            (16, Lanes::L16, VectorType::F16),
            (80, Lanes::L16, VectorType::F32),
            (48, Lanes::L32, VectorType::F16),
        ] {
            let cols = 96;
            let mut random = Random::new(u64::from(rows));
            let norm = vec![1.0; cols];
            let gates = Gates::new(&mut random, (weight, kind), &norm, rows, 32);
            // Nothing to round where inputs are packed.
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let x: Vec<f32> = (0..cols)
                .map(|column| match column % 32 {
                    0 => 127.0 / 64.0,
                    _ => (random.below(255) as f32 - 127.0) / 64.0,
                })
                .collect();
            let expected = gates.expected(&x);
            let label = gates.label(dialect, true, lanes);
            let words = (rows as usize).div_ceil(32) * 12;
            let run = |tokens| gates.run(dialect, (true, lanes), &x, tokens, 12 + words);
            assert_eq!(
                run(0),
                vec![POISON; 12 + words],
                "{label}: nothing in flight"
            );
            let y = run(1);
            let (others, own) = y.split_at(12);
            assert_eq!(others, [POISON; 12], "{label}: rows of others stay");
            check_codes(&label, weight, own, &expected, GATE_UP);
            if rows % 32 != 0 {
                let last = &own[words - 12..];
                let second = last[4..8].iter().chain(&last[10..]);
                assert!(
                    second.into_iter().all(|&word| word == POISON),
                    "{label}: a half past the end stays"
                );
            }
        }
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn parts_are_joined_into_codes() {
    for weight in TYPES {
        for (head_dim, parts) in [(64u32, 1u32), (80, 37), (128, 6)] {
            let shape = HeadShape {
                heads: 2,
                kv_heads: 1,
                head_dim,
            };
            let mut random = Random::new(u64::from(parts));
            let mut partials = Vec::new();
            let mut twin = [Vec::new(), Vec::new()];
            for own in (0..parts).flat_map(|_| [0, 1]) {
                let sum = random.spiked(head_dim as usize, 3.0);
                let (row_max, row_sum) = (random.unit(), 1.5 + random.unit());
                partials.extend_from_slice(&sum);
                partials.extend([row_max, row_sum]);
                twin[own].push(Part {
                    sum: sum.into_iter().map(f64::from).collect(),
                    row_max: row_max.into(),
                    row_sum: row_sum.into(),
                });
            }
            let (list, start) = list_of_parts(shape, parts, parts);
            let words = (2 * head_dim as usize) / 32 * 12;
            let run = |tokens: u32, partials: &[f32]| {
                let joined = test_gpu_in(Dialect::BASE).run(
                    Kernel::MergeLse {
                        codes: Some(weight),
                    },
                    shape,
                    (2 * head_dim / shape.merge_channels(), 1),
                    &[
                        ("state", Data::U32(&state(start, tokens))),
                        ("partials", Data::F32(partials)),
                        ("y", Data::Poison(words)),
                        ("items", Data::U32(cast_slice(&list.items))),
                    ],
                );
                joined["y"].clone()
            };
            let expected: Vec<f64> = twin.iter().flat_map(|parts| merge_lse(parts)).collect();
            let label = format!("{}: {parts} parts of {head_dim}", weight.name());
            check_codes(&label, weight, &run(1, &partials), &expected, MERGE);
            assert_eq!(
                run(0, &partials),
                vec![POISON; words],
                "{label}: nothing in flight"
            );

            // Nothing but zeros, next to nothing, and NaN, which no code may hide.
            let width = head_dim as usize + 2;
            for part in partials.chunks_mut(2 * width) {
                part[..16].fill(0.0);
                part[16..32].fill(1e-35);
                part[37] = f32::NAN;
            }
            let y = run(1, &partials);
            let scale = |half: usize| {
                let at = place(weight, 16 * half).2;
                [y[at], y[at + 1]].map(f32::from_bits)
            };
            assert_eq!(scale(0), [0.0; 2], "{label}: zeros");
            assert_eq!(y[..8], [0; 8], "{label}: zeros, and next to nothing");
            assert!(
                (0.0..1e-33).contains(&scale(1)[1]),
                "{label}: next to nothing"
            );
            assert!(scale(2)[0].is_nan(), "{label}: NaN is hidden by a step");
            assert!(scale(3).iter().all(|value| value.is_finite()), "{label}");
        }
    }
}
