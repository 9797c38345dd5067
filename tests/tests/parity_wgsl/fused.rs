//! The fused kernels of decode: several tensors in one binding, norms in the load, rotation and residuals at the end.

use bytemuck::{bytes_of, cast_slice};
use moa_mask::abi::QkvParams;
use moa_reference::compare::{Tolerance, compare};
use moa_reference::project::{Norm, project};
use moa_reference::qkv::{Projection, qkv};
use moa_shaders::{Dialect, HeadShape, Inputs, Kernel, Lanes, VectorType, WeightType};
use moa_tests::attention::unpacked;
use moa_tests::cases;
use moa_tests::gpu::{Data, POISON, floats, reductions, test_gpu_in};
use moa_tests::random::Random;

use crate::code_words::{encoded, exact_codes};
use crate::file::{File, vector_words};
use crate::gates::{Gates, Way};
use crate::{bits, state};

/// Of sums of up to 4,160 products of magnitude 1, in f32.
pub(crate) const PROJECT: Tolerance = Tolerance::new(1e-4, 2e-5);
/// Products of two such sums.
pub(crate) const GATE_UP: Tolerance = Tolerance::new(2e-4, 4e-5);
/// One rounding to f16, and a different one where f32 lands across a tie.
const STORED: Tolerance = Tolerance::new(1e-4, 1.05e-3);
pub(crate) const EPS: f32 = 1e-5;
/// Attention's shape, which `project` and `gate_up` do not use.
pub(crate) const SHAPE: HeadShape = HeadShape {
    heads: 1,
    kv_heads: 1,
    head_dim: 64,
};

/// Weights of a norm, around 1.
fn norm_weights(random: &mut Random, cols: u32) -> Vec<f32> {
    (0..cols).map(|_| 1.0 + 0.5 * random.unit()).collect()
}

/// Rows of each piece, columns, tokens in flight.
pub(crate) const PROJECT_CASES: [(&[u32], u32, usize); 8] = [
    (&[1], 32, 1),
    (&[67], 96, 1),
    (&[130], 576, 3),
    (&[30, 30, 7], 64, 1),
    (&[33], 1536, 1),
    (&[9], 2080, 1),
    (&[21, 2], 4160, 2),
    (&[48, 48], 160, 1),
];
/// Columns that are no whole groups of 32, for types without groups.
const RAGGED: [(&[u32], u32, usize); 3] = [(&[20], 4, 1), (&[70, 11], 100, 1), (&[5], 2052, 1)];

/// Every dialect with every weight type; subgroups with one, since they differ in what happens after the weights.
fn dialects() -> impl Iterator<Item = (Dialect, WeightType)> {
    reductions().into_iter().flat_map(|dialect| {
        let variant = dialect.variant;
        WeightType::ALL
            .into_iter()
            .filter(move |weight| !variant.subgroups || *weight == WeightType::Q4)
            .map(move |weight| (dialect, weight))
    })
}

/// How work is shared and how norms are stored in a case: everything with q4, one way with the other types. A variant
/// is a pipeline, and its compilation is what takes time.
fn variant(weight: WeightType, index: usize) -> (Lanes, VectorType) {
    if weight == WeightType::Q4 {
        (Lanes::ALL[index % 3], VectorType::ALL[index / 2 % 2])
    } else {
        (Lanes::L64, VectorType::F32)
    }
}

fn check_project(
    dialect: Dialect,
    lanes: Lanes,
    weight: WeightType,
    (pieces, cols, tokens): (&[u32], u32, usize),
    norm: Option<VectorType>,
    add: bool,
) -> f64 {
    // What is added to belongs to the only token in flight.
    let tokens = if add { 1 } else { tokens };
    let mut random = Random::new(u64::from(pieces[0] * cols));
    let mut file = File::default();
    let row_offset = 5;
    let (params, weights, _) = file.pieces(&mut random, weight, (pieces, cols), row_offset);
    let rows = params.rows;
    let out = (row_offset + rows + 3) as usize;
    let before = random.spiked(out, 1.0);
    let (vector, norm_weight) = vector_words(
        norm.unwrap_or(VectorType::F32),
        &norm_weights(&mut random, cols),
    );
    let x = random.spiked(tokens * cols as usize, 1.0);
    let last = &x[x.len() - cols as usize..];
    let own = row_offset as usize..(row_offset + rows) as usize;
    let twin = |eps: f64| {
        let norm = norm.map(|_| Norm {
            weight: &norm_weight,
            eps,
        });
        project(last, norm, &weights, add.then_some(&before[own.clone()]))
    };
    let expected = twin(EPS.into());
    let kernel = Kernel::Project {
        weight,
        inputs: norm.map_or(Inputs::Plain, Inputs::Norm),
        add,
        leaves: None,
        lanes,
    };
    let label = format!("{} {pieces:?} x {cols}", kernel.label_in(SHAPE, dialect));
    let poisoned = if add {
        before.clone()
    } else {
        vec![f32::from_bits(POISON); out]
    };
    let run = |tokens: usize| {
        let outputs = test_gpu_in(dialect).run(
            kernel,
            SHAPE,
            (rows.div_ceil(lanes.rows()), 1),
            &[
                ("params", Data::Bytes(bytes_of(&params))),
                (
                    "state",
                    Data::U32(&state(7, u32::try_from(tokens).unwrap())),
                ),
                ("x", Data::F32(&x)),
                ("values", Data::Bytes(&file.bytes)),
                ("words", Data::Bytes(&file.bytes)),
                ("vector", Data::U32(&vector)),
                ("y", Data::F32(&poisoned)),
            ],
        );
        outputs["y"].clone()
    };
    let y = run(tokens);
    let error = compare(&floats(&y[own.clone()]), &expected, PROJECT).assert(&label);
    assert!(
        y[..own.start] == bits(&poisoned)[..own.start]
            && y[own.end..] == bits(&poisoned)[own.end..],
        "{label}: rows of others stay"
    );
    assert!(
        run(0) == bits(&poisoned),
        "{label}: nothing in flight, nothing done"
    );
    // Controls: one changed value, the rows moved by one, another eps.
    let mut changed = expected.clone();
    changed[rows as usize - 1] += 1e-3 + 1e-3 * changed[rows as usize - 1].abs();
    assert!(
        !compare(&floats(&y[own.clone()]), &changed, PROJECT).passed(),
        "{label}: one changed value passed"
    );
    changed.clone_from(&expected);
    changed.rotate_left(1);
    assert!(
        rows == 1 || !compare(&floats(&y[own.clone()]), &changed, PROJECT).passed(),
        "{label}: the neighboring row passed"
    );
    assert!(
        norm.is_none() || !compare(&floats(&y[own.clone()]), &twin(0.1), PROJECT).passed(),
        "{label}: another eps passed"
    );
    error
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn projections_equal_their_twin() {
    for (dialect, weight) in dialects() {
        let mut list = PROJECT_CASES.to_vec();
        if !weight.has_scales() {
            list.extend(RAGGED);
        }
        let mut largest = 0.0f64;
        for (index, case) in list.into_iter().enumerate() {
            let (lanes, kind) = variant(weight, index);
            let (norm, add) = if index % 2 == 0 {
                (None, true)
            } else {
                (Some(kind), false)
            };
            largest = largest.max(check_project(dialect, lanes, weight, case, norm, add));
            if norm.is_none() {
                let error = check_project(dialect, Lanes::L64Two, weight, case, norm, add);
                largest = largest.max(error);
            }
        }
        println!(
            "project, {}, {}: {largest:.2e}",
            weight.name(),
            dialect.variant
        );
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn gates_with_their_projections_equal_their_twin() {
    for (dialect, weight) in dialects() {
        let mut largest = 0.0f64;
        let ragged = if weight.has_scales() { 64 } else { 100 };
        for (index, (rows, cols)) in [(1, 32), (7, 96), (41, 576), (64, 2080), (13, ragged)]
            .into_iter()
            .enumerate()
        {
            let (lanes, kind) = variant(weight, index);
            let mut random = Random::new(u64::from(rows * cols));
            let norm = norm_weights(&mut random, cols);
            let gates = Gates::new(&mut random, (weight, kind), &norm, rows, 2);
            let x = random.spiked(cols as usize, 1.0);
            let expected = gates.expected(&x);
            let way = Way {
                of_codes: false,
                codes: false,
                lanes,
            };
            let label = gates.label(dialect, way);
            let y = gates.run(dialect, way, &bits(&x), 1, rows as usize + 5);
            let (own, rest) = y[2..].split_at(rows as usize);
            let error = compare(&floats(own), &expected, GATE_UP).assert(&label);
            largest = largest.max(error);
            assert!(
                rest.iter().chain(&y[..2]).all(|&word| word == POISON),
                "{label}: rows of others stay"
            );
            let swapped = gates.swapped(&x);
            assert!(
                !compare(&floats(own), &swapped, GATE_UP).passed(),
                "{label}: swapped passed"
            );
        }
        println!(
            "gate_up, {}, {}: {largest:.2e}",
            weight.name(),
            dialect.variant
        );
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn queries_keys_and_values_equal_their_twin() {
    let rope = moa_format::RopeConfig {
        theta: 10_000.0,
        scaling: None,
    };
    let ways = dialects().flat_map(|(dialect, weight)| {
        [false, true]
            .map(|of_codes| (dialect, weight, of_codes))
            .into_iter()
            .filter(move |(.., of_codes)| !of_codes || weight.has_scales())
    });
    for (dialect, weight, of_codes) in ways {
        let mut largest = 0.0f64;
        for (index, case) in cases::attention_prefill().into_iter().enumerate() {
            // Half of the shapes for one type, one for the others.
            if index % 2 == 0 || (weight != WeightType::Q4 && index != 7) {
                continue;
            }
            // Heads of the case, not its keys: one token at its start, in the ring as it is then.
            let shape = case.head_shape();
            let cols = [96, 64, 160][index % 3];
            let kind = VectorType::ALL[index / 2 % 2];
            let has_bias = index % 3 != 0;
            let mut random = Random::new(index as u64);
            let mut file = File::default();
            // Codes have met the norm's weights.
            let norm_weight = if of_codes {
                vec![1.0; cols as usize]
            } else {
                norm_weights(&mut random, cols)
            };
            let (norm_at, norm_weight) = file.vector(kind, &norm_weight);
            let heads = [case.heads, case.kv_heads, case.kv_heads];
            let parts: Vec<_> = heads
                .iter()
                .map(|heads| {
                    let rows = heads * case.head_dim;
                    let matrix = file.matrix(&mut random, weight, rows, cols);
                    let bias = file.vector(kind, &random.spiked(rows as usize, 0.5));
                    (matrix, bias)
                })
                .collect();
            let (x, words, inputs, lanes) = if of_codes {
                let (x, codes) = exact_codes(&mut random, cols);
                let lanes = [Lanes::L32One, Lanes::L64One][(index / 2) % 2];
                (x, encoded(weight, &codes), Inputs::NormedCodes, lanes)
            } else {
                let x = random.spiked(cols as usize, 1.0);
                let words = bits(&x);
                (x, words, Inputs::Norm(kind), Lanes::ALL[(index / 6) % 3])
            };
            let inv_freq = rope.inv_freq(case.head_dim);
            let (cos, sin) = rope.cos_sin(case.head_dim, 0..case.context);
            let table: Vec<f32> = cos
                .iter()
                .zip(&sin)
                .flat_map(|(&cos, &sin)| [cos, sin])
                .collect();
            let norm = Norm {
                weight: &norm_weight,
                eps: EPS.into(),
            };
            let projections = [0, 1, 2].map(|part: usize| {
                let ((_, _, weights), (_, bias)) = &parts[part];
                Projection {
                    weights,
                    bias: has_bias.then_some(bias),
                }
            });
            let expected = qkv(&x, norm, projections, case.start, &inv_freq);
            let quads = (case.heads + 2 * case.kv_heads) * case.head_dim / 4;
            let params = QkvParams {
                q_at: parts[0].0.0,
                q_scales_at: parts[0].0.1,
                q_bias_at: parts[0].1.0,
                k_at: parts[1].0.0,
                k_scales_at: parts[1].0.1,
                k_bias_at: parts[1].1.0,
                v_at: parts[2].0.0,
                v_scales_at: parts[2].0.1,
                v_bias_at: parts[2].1.0,
                norm_at,
                cols,
                eps: EPS,
                first_quad: 0,
                quads,
                ..QkvParams::default()
            };
            let spans = case.spans();
            let ring_words = case.ring(&[], 0, POISON).len();
            let kernel = Kernel::Qkv {
                weight,
                inputs,
                bias: has_bias.then_some(kind),
                lanes,
            };
            let label = format!("{}, {}", kernel.label_in(shape, dialect), case.name);
            let outputs = test_gpu_in(dialect).run(
                kernel,
                shape,
                ((4 * quads).div_ceil(lanes.rows()), 1),
                &[
                    ("params", Data::Bytes(bytes_of(&params))),
                    ("state", Data::U32(&state(case.start, 1))),
                    ("x", Data::U32(&words)),
                    ("values", Data::Bytes(&file.bytes)),
                    ("words", Data::Bytes(&file.bytes)),
                    ("table", Data::F32(&table)),
                    ("q", Data::Poison(expected.q.len())),
                    ("k_ring", Data::Poison(ring_words)),
                    ("v_ring", Data::Poison(ring_words)),
                    ("spans", Data::U32(cast_slice(&spans))),
                ],
            );
            let q = floats(&outputs["q"]);
            largest = largest.max(compare(&q, &expected.q, PROJECT).assert(&label));
            let next = qkv(&x, norm, projections, case.start + 1, &inv_freq);
            assert!(
                !compare(&q, &next.q, PROJECT).passed(),
                "{label}: the next position passed"
            );
            let row_words = (case.head_dim / 2) as usize;
            for (name, stored) in [("k_ring", &expected.k), ("v_ring", &expected.v)] {
                let mut words = outputs[name].clone();
                for (kv_head, (span, layout)) in spans.iter().zip(case.layouts()).enumerate() {
                    let slot = (span.slot_offset + layout.slot(case.start)) as usize;
                    let row = &mut words[slot * row_words..][..row_words];
                    let own = &stored[kv_head * 2 * row_words..][..2 * row_words];
                    let _ = compare(&unpacked(row), own, STORED).assert(&label);
                    row.fill(POISON);
                }
                assert!(
                    words.iter().all(|&word| word == POISON),
                    "{label}: {name}: one writer, one slot"
                );
            }
        }
        println!("qkv, {}, {}: {largest:.2e}", weight.name(), dialect.variant);
    }
}
