//! Kernels that take codes in or leave them: bytes in the order of the weights that they meet, with a step and a sum for
//! every eight columns.

use bytemuck::{bytes_of, cast_slice};
use moa_mask::abi::ProjectParams;
use moa_reference::codes::Codes;
use moa_reference::compare::{Tolerance, compare};
use moa_reference::merge_lse::{Part, merge_lse};
use moa_shaders::{
    Dialect, HeadShape, Inputs, Kernel, Lanes, VectorType, WIDE_WORKGROUP, WeightType,
};
use moa_tests::gpu::{Data, POISON, TestGpu, floats, packed, reductions, test_gpu_in};
use moa_tests::random::Random;

use crate::attention::list_of_parts;
use crate::code_words::{
    TYPES, byte_words, check_codes, code_words, encoded, exact_codes, others_stay, random_codes,
    scale_of,
};
use crate::file::{File, vector_words};
use crate::fused::{EPS, GATE_UP, PROJECT, PROJECT_CASES, SHAPE};
use crate::gates::{Gates, Way};
use crate::state;

/// Sums of magnitude 3, divided by their weights.
const MERGE: Tolerance = Tolerance::new(1e-5, 1e-5);

/// A matrix in pieces and a token as codes.
struct Case {
    weight: WeightType,
    file: File,
    params: ProjectParams,
    /// The pieces' rows, and what all weights of a group have in common.
    weights: Vec<f64>,
    offsets: Vec<f64>,
    codes: Codes,
    before: Vec<f32>,
}

impl Case {
    fn new(weight: WeightType, pieces: &[u32], cols: u32, row_offset: u32, normed: bool) -> Self {
        let mut random = Random::new(u64::from(pieces[0] * cols));
        let mut file = File::default();
        let (params, weights, offsets) =
            file.pieces(&mut random, weight, (pieces, cols), row_offset);
        let rows = params.rows;
        Self {
            weight,
            file,
            params,
            weights,
            offsets,
            codes: random_codes(&mut random, cols, normed),
            before: random.spiked((row_offset + rows) as usize + 5, 1.0),
        }
    }

    /// The rows that are written.
    fn own(&self) -> std::ops::Range<usize> {
        self.params.row_offset as usize..(self.params.row_offset + self.params.rows) as usize
    }

    fn kernel(&self, normed: bool, leaves: Option<VectorType>, lanes: Lanes) -> Kernel {
        Kernel::Project {
            weight: self.weight,
            inputs: if normed {
                Inputs::NormedCodes
            } else {
                Inputs::Codes
            },
            // Whoever divides by a norm is added to nothing.
            add: !normed,
            leaves,
            lanes,
        }
    }

    /// What the twin says.
    fn expected(&self, normed: bool) -> Vec<f64> {
        let mut y = self.codes.product(&self.weights, &self.offsets);
        let root = self.codes.root(EPS.into());
        for (y, before) in y.iter_mut().zip(&self.before[self.own()]) {
            *y = if normed {
                *y / root
            } else {
                *y + f64::from(*before)
            };
        }
        y
    }

    /// y, and the codes that are left.
    fn run(
        &self,
        (dialect, kernel): (Dialect, Kernel),
        constants: bool,
        tokens: u32,
        codes: &[u32],
        norm: &[u32],
    ) -> (Vec<f32>, Vec<u32>) {
        let Kernel::Project { lanes, leaves, .. } = kernel else {
            panic!("a product");
        };
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
            (self.params.rows.div_ceil(lanes.rows()), 1),
            &[
                ("params", Data::Bytes(bytes_of(&self.params))),
                ("state", Data::U32(&state(7, tokens))),
                ("x", Data::U32(codes)),
                ("values", Data::Bytes(&self.file.bytes)),
                ("words", Data::Bytes(&self.file.bytes)),
                ("y", Data::F32(&self.before)),
                ("vector", Data::U32(norm)),
                ("codes", Data::Poison(code_words(self.own().end + 32))),
            ],
        );
        let left = leaves.map_or(Vec::new(), |_| outputs["codes"].clone());
        (floats(&outputs["y"]), left)
    }
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
    // Rows of one to 17 blocks a thread.
    cases.extend([(&[6][..], 4864), (&[3], 8192), (&[2], 17_408)]);
    for dialect in reductions() {
        for weight in TYPES {
            let mut largest = 0.0f64;
            for (index, &(pieces, cols)) in cases.iter().enumerate() {
                for (lanes, normed) in [
                    (Lanes::L32One, index % 2 == 0),
                    (Lanes::L64One, index % 2 == 1),
                    (Lanes::L16, true),
                ] {
                    // Large vocabularies alone have four rows a set.
                    if lanes == Lanes::L16 && index % 4 != 0 {
                        continue;
                    }
                    largest =
                        largest.max(check_project(dialect, lanes, weight, pieces, cols, normed));
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
    normed: bool,
) -> f64 {
    let case = Case::new(weight, pieces, cols, 3, normed);
    let kernel = case.kernel(normed, None, lanes);
    let label = format!("{} {pieces:?} x {cols}", kernel.label_in(SHAPE, dialect));
    let run = |constants, tokens, codes: &[u32]| {
        case.run((dialect, kernel), constants, tokens, codes, &[]).0
    };
    let words = encoded(weight, &case.codes);
    let (y, own, before) = (run(false, 1, &words), case.own(), &case.before);
    let expected = case.expected(normed);
    // A pipeline of its own for each, whose compilation is what takes time: one with a loop, one without.
    if [576, 4864].contains(&cols) {
        let constant = run(true, 1, &words);
        let what = format!("{label}, constants in the source");
        let _ = compare(&constant[own.clone()], &expected, PROJECT).assert(&what);
    }
    let error = compare(&y[own.clone()], &expected, PROJECT).assert(&label);
    assert!(
        y[..own.start] == before[..own.start] && y[own.end..] == before[own.end..],
        "{label}: rows of others stay"
    );
    assert_eq!(run(false, 0, &words), *before, "{label}: nothing in flight");
    let fails = |what: &str, codes: &[u32]| {
        let wrong = run(false, 1, codes);
        assert!(
            !compare(&wrong[own.clone()], &expected, PROJECT).passed(),
            "{label}: {what} passed"
        );
    };
    let other = TYPES.into_iter().find(|other| *other != weight).unwrap();
    fails("the other order", &encoded(other, &case.codes));
    if weight == WeightType::Q4 {
        let mut changed = case.codes.clone();
        changed.sums[0] += 8.0;
        changed.steps[0] = f32::from_bits(
            changed.steps[0].to_bits() & 0xffff_0000 | changed.sums[0].to_bits() >> 16,
        );
        fails("another sum", &encoded(weight, &changed));
    }
    if normed {
        let mut changed = case.codes.clone();
        changed.squares[cols as usize / 8 - 1] += 0.1 * f32::from(u16::try_from(cols).unwrap());
        fails("another square", &encoded(weight, &changed));
    }
    error
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn products_leave_codes_of_their_sums() {
    let mut list = reductions();
    list.push(packed());
    let wide = test_gpu_in(packed()).threads() >= WIDE_WORKGROUP;
    for (dialect, weight) in list
        .into_iter()
        .flat_map(|dialect| TYPES.map(|weight| (dialect, weight)))
    {
        let mut ways = vec![(Lanes::L32One, VectorType::F32)];
        // The base is tested within the default limits.
        if wide && dialect.variant != moa_shaders::Variant::BASE {
            ways.push((Lanes::L64Wide, VectorType::F16));
        }
        for (lanes, kind) in ways {
            for (pieces, cols) in [(&[8][..], 64), (&[40], 576), (&[16, 16, 8], 2080)] {
                let case = Case::new(weight, pieces, cols, 1016, false);
                let kernel = case.kernel(false, Some(kind), lanes);
                let label = format!("{} {pieces:?} x {cols}", kernel.label_in(SHAPE, dialect));
                let own = case.own();
                let mut random = Random::new(7);
                let norm: Vec<f32> = (0..own.end).map(|_| 1.0 + 0.5 * random.unit()).collect();
                let (vector, norm) = vector_words(kind, &norm);
                let words = encoded(weight, &case.codes);
                let run = |tokens| case.run((dialect, kernel), false, tokens, &words, &vector);
                let (y, left) = run(1);
                let expected = case.expected(false);
                let _ = compare(&y[own.clone()], &expected, PROJECT).assert(&label);
                let normed: Vec<f64> = expected
                    .iter()
                    .zip(&norm[own.clone()])
                    .map(|(value, norm)| value * f64::from(*norm))
                    .collect();
                check_codes(&label, &left, own.start, &normed, Some(&expected), PROJECT);
                others_stay(&label, &left, own.clone(), true);
                let (y, left) = run(0);
                assert_eq!(y, case.before, "{label}: nothing in flight");
                others_stay(&label, &left, 0..0, true);
            }
        }
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn gates_take_codes_and_leave_them() {
    for (dialect, weight) in reductions()
        .into_iter()
        .flat_map(|dialect| TYPES.map(|weight| (dialect, weight)))
    {
        for (rows, cols, of_codes, codes, lanes) in [
            (16, 96, false, true, Lanes::L16),
            (72, 96, false, true, Lanes::L32),
            (24, 1056, false, true, Lanes::L64),
            (40, 96, true, true, Lanes::L32Two),
            (72, 2080, true, true, Lanes::L32Two),
            (40, 2080, true, true, Lanes::L32),
            (33, 1056, true, false, Lanes::L32Two),
        ] {
            let mut random = Random::new(u64::from(rows));
            // The norm's weights are in the codes.
            let norm = vec![1.0; cols as usize];
            let kind = VectorType::ALL[usize::from(rows == 72)];
            let row_offset = if codes { 1016 } else { 3 };
            let gates = Gates::new(&mut random, (weight, kind), &norm, rows, row_offset);
            let (x, token) = exact_codes(&mut random, cols);
            let expected = gates.expected(&x);
            let way = Way {
                of_codes,
                codes,
                lanes,
            };
            let label = gates.label(dialect, way);
            let own = row_offset as usize..(row_offset + rows) as usize;
            let inputs = if of_codes {
                encoded(weight, &token)
            } else {
                crate::bits(&x)
            };
            let words = if codes {
                code_words(own.end + 32)
            } else {
                own.end + 5
            };
            let run = |tokens| gates.run(dialect, way, &inputs, tokens, words);
            assert_eq!(run(0), vec![POISON; words], "{label}: nothing in flight");
            let y = run(1);
            if codes {
                check_codes(&label, &y, own.start, &expected, None, GATE_UP);
                others_stay(&label, &y, own, false);
            } else {
                let _ = compare(&floats(&y[own.clone()]), &expected, GATE_UP).assert(&label);
                assert!(
                    y[..own.start]
                        .iter()
                        .chain(&y[own.end..])
                        .all(|&word| word == POISON),
                    "{label}: rows of others stay"
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
    for (head_dim, parts) in [(64u32, 1u32), (80, 37), (24, 5), (128, 6)] {
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
        let cols = 2 * head_dim as usize;
        let run = |tokens: u32, partials: &[f32]| {
            let joined = test_gpu_in(Dialect::BASE).run(
                Kernel::MergeLse { codes: true },
                shape,
                (2 * head_dim / shape.merge_channels(), 1),
                &[
                    ("state", Data::U32(&state(start, tokens))),
                    ("partials", Data::F32(partials)),
                    ("items", Data::U32(cast_slice(&list.items))),
                    ("codes", Data::Poison(code_words(cols))),
                ],
            );
            joined["codes"].clone()
        };
        let expected: Vec<f64> = twin.iter().flat_map(|parts| merge_lse(parts)).collect();
        let label = format!("{parts} parts of {head_dim}");
        let y = run(1, &partials);
        check_codes(&label, &y, 0, &expected, None, MERGE);
        others_stay(&label, &y, 0..cols, false);
        others_stay(&label, &run(0, &partials), 0..0, false);

        // Nothing but zeros, next to nothing, and NaN, which no code may hide.
        let width = head_dim as usize + 2;
        for part in partials.chunks_mut(2 * width) {
            part[..8].fill(0.0);
            part[8..16].fill(1e-35);
            part[21] = f32::NAN;
        }
        let y = run(1, &partials);
        assert_eq!(scale_of(&y, 0)[1], 0.0, "{label}: zeros");
        for column in [0, 8] {
            assert_eq!(byte_words(&y, column), [0; 4], "{label}: next to nothing");
            assert!(
                scale_of(&y, column)
                    .iter()
                    .all(|value| (0.0..1e-33).contains(value)),
                "{label}: next to nothing"
            );
        }
        let broken = scale_of(&y, 16);
        assert!(
            broken.iter().all(|value| value.is_nan()),
            "{label}: NaN is hidden"
        );
        assert!(
            scale_of(&y, 24).iter().all(|value| value.is_finite()),
            "{label}"
        );
    }
}
