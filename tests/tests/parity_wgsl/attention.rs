//! Attention of chunks and of single tokens.

use bytemuck::cast_slice;
use moa_mask::abi::HeadSpan;
use moa_mask::{HeadMask, KvFormat};
use moa_reference::attention_decode::{DecodeHead, attention_decode};
use moa_reference::attention_prefill::attention_prefill;
use moa_reference::compare::{Tolerance, compare};
use moa_reference::merge_lse::{Part, merge_lse};
use moa_shaders::{ATTENTION_ROWS, Dialect, HeadShape, Kernel, WorkList};
use moa_tests::attention::{Inputs, unpacked};
use moa_tests::cases::{self, AttentionCase};
use moa_tests::gpu::{Data, floats, reductions, test_gpu, test_gpu_in};
use moa_tests::random::Random;

use crate::{bits, state};

/// A mask beside the one that is tested.
type Neighbor = fn(HeadMask) -> HeadMask;

/// Two f16 NaN.
const NAN_PAIR: u32 = 0x7e00_7e00;
/// Two f16 of 3.
const THREES: u32 = 0x4200_4200;

const ATTENTION: Tolerance = Tolerance::new(2e-6, 2e-6);
/// Scores of 80 carry an error of 80 * 2^-24 or so into the exponent.
const ATTENTION_LARGE: Tolerance = Tolerance::new(2e-5, 2e-5);

/// Sums of up to 500 parts of magnitude 3, divided by their weights.
const MERGE: Tolerance = Tolerance::new(1e-5, 1e-5);

/// The rings of a case in a format.
fn ring(
    case: &AttentionCase,
    format: KvFormat,
    rows: &[f32],
    end: u32,
    forbidden: u32,
) -> Vec<u32> {
    match format {
        KvFormat::Sixteen => case.ring(rows, end, forbidden),
        KvFormat::Int8 => case.ring_of_bytes(rows, end, forbidden),
    }
}

fn run_prefill(case: &AttentionCase, inputs: &Inputs, forbidden: u32) -> Vec<f32> {
    run_prefill_of(KvFormat::Sixteen, case, inputs, forbidden)
}

fn run_prefill_of(
    format: KvFormat,
    case: &AttentionCase,
    inputs: &Inputs,
    forbidden: u32,
) -> Vec<f32> {
    let spans = case.spans();
    let ring = |rows| ring(case, format, rows, case.start, forbidden);
    let grid = (
        (case.len * case.heads / case.kv_heads).div_ceil(ATTENTION_ROWS),
        case.kv_heads,
    );
    let outputs = test_gpu().run(
        Kernel::AttentionPrefill(format),
        case.head_shape(),
        grid,
        &[
            ("state", Data::U32(&state(case.start, case.len))),
            ("q", Data::F32(&inputs.q)),
            ("k_ring", Data::U32(&ring(&inputs.k))),
            ("v_ring", Data::U32(&ring(&inputs.v))),
            ("k_chunk", Data::U32(&case.chunk(&inputs.k))),
            ("v_chunk", Data::U32(&case.chunk(&inputs.v))),
            ("spans", Data::U32(cast_slice(&spans))),
            ("y", Data::Poison(inputs.q.len())),
        ],
    );
    floats(&outputs["y"])
}

fn twin_prefill(case: &AttentionCase, inputs: &Inputs, masks: &[HeadMask]) -> Vec<f64> {
    attention_prefill(
        case.shape(),
        &inputs.q,
        &inputs.k,
        &inputs.v,
        masks,
        case.start,
    )
    .o
}

fn attention_tolerance(case: &AttentionCase) -> Tolerance {
    if case.largest_score > 20.0 {
        ATTENTION_LARGE
    } else {
        ATTENTION
    }
}

/// What is right, what is beside it, and what nobody may look at in one test, so that each shape is compiled once.
#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn prefill_attention_equals_its_twin_and_nothing_beside_it() {
    for (seed, case) in (1..).zip(cases::attention_prefill()) {
        let inputs = case.inputs(seed);
        let expected = twin_prefill(&case, &inputs, &case.masks);
        let actual = run_prefill(&case, &inputs, NAN_PAIR);
        let error = compare(&actual, &expected, attention_tolerance(&case)).assert(case.name);
        println!("attention_prefill, {}: {error:.2e}", case.name);
        assert!(
            expected.iter().any(|value| value.abs() > 0.05),
            "{}: outputs say something",
            case.name
        );
        told_from_neighbors(&case, &inputs, &actual, expected);
        never_looks_at_forbidden_keys(&case, &inputs, &actual);
    }
}

/// The control: one key more, one less, a sink of one more, one changed value.
fn told_from_neighbors(
    case: &AttentionCase,
    inputs: &Inputs,
    actual: &[f32],
    mut expected: Vec<f64>,
) {
    let tolerance = attention_tolerance(case);
    let q_last = case.start + case.len - 1;
    let neighbors: [(&str, Neighbor); 3] = [
        ("window + 1", |mask| HeadMask {
            window: mask.window.saturating_add(1),
            ..mask
        }),
        ("window - 1", |mask| HeadMask {
            window: mask.window - 1,
            ..mask
        }),
        ("sink + 1", |mask| HeadMask {
            sink: mask.sink + 1,
            ..mask
        }),
    ];
    for (name, change) in neighbors {
        let changed: Vec<HeadMask> = case
            .masks
            .iter()
            .map(|&mask| if mask.window > 1 { change(mask) } else { mask })
            .collect();
        let differs = (case.masks.iter().zip(&changed)).any(|(a, b)| {
            (0..=q_last).any(|k_pos| a.attends(q_last, k_pos) != b.attends(q_last, k_pos))
        });
        if differs {
            let expected = twin_prefill(case, inputs, &changed);
            assert!(
                !compare(actual, &expected, tolerance).passed(),
                "{}: {name} passed",
                case.name
            );
        }
    }
    let last = expected.len() - 1;
    expected[last] += 1e-3 + 1e-3 * expected[last].abs();
    assert!(
        !compare(actual, &expected, tolerance).passed(),
        "{}: one changed value passed",
        case.name
    );
}

fn never_looks_at_forbidden_keys(case: &AttentionCase, inputs: &Inputs, with_nan: &[f32]) {
    let with_threes = run_prefill(case, inputs, THREES);
    assert!(bits(with_nan) == bits(&with_threes), "{}", case.name);

    // Keys that only later queries of the chunk see: NaN there reaches those and nobody else.
    let seen = case.len / 2;
    let mut poisoned = inputs.clone();
    let from = case.shape().kv_index((case.start + seen) as usize, 0);
    poisoned.k[from..].fill(f32::NAN);
    poisoned.v[from..].fill(f32::NAN);
    let actual = run_prefill(case, &poisoned, NAN_PAIR);
    let end = case.shape().q_index(seen as usize, 0);
    assert!(
        bits(&actual[..end]) == bits(&with_nan[..end]),
        "{}: causality",
        case.name
    );
    assert!(
        actual[end..].iter().all(|value| value.is_nan()),
        "{}: the control",
        case.name
    );
}

fn run_decode_of(
    dialect: Dialect,
    format: KvFormat,
    case: &AttentionCase,
    inputs: &Inputs,
    forbidden: u32,
    rounds: u32,
) -> Vec<f32> {
    let shape = case.head_shape();
    let list = WorkList::of_rounds(&case.spans(), case.context, shape, rounds);
    let ring = |rows| ring(case, format, rows, case.start + 1, forbidden);
    let words = (list.partials * (case.head_dim + 2)) as usize;
    let mut gpu = test_gpu_in(dialect);
    let partials = gpu.run(
        Kernel::AttentionDecode(format),
        shape,
        (list.count, 1),
        &[
            ("state", Data::U32(&state(case.start, 1))),
            ("q", Data::F32(&inputs.q)),
            ("k_ring", Data::U32(&ring(&inputs.k))),
            ("v_ring", Data::U32(&ring(&inputs.v))),
            ("items", Data::U32(cast_slice(&list.items))),
            ("partials", Data::Poison(words)),
        ],
    );
    let joined = gpu.run(
        Kernel::MergeLse { codes: false },
        shape,
        (case.heads * case.head_dim / shape.merge_channels(), 1),
        &[
            ("state", Data::U32(&state(case.start, 1))),
            ("partials", Data::U32(&partials["partials"])),
            ("y", Data::Poison(inputs.q.len())),
            ("items", Data::U32(cast_slice(&list.items))),
        ],
    );
    floats(&joined["y"])
}

fn twin_decode(case: &AttentionCase, inputs: &Inputs, masks: &[HeadMask]) -> Vec<f64> {
    let spans = case.spans();
    let heads: Vec<DecodeHead> = (masks.iter().zip(case.layouts()).zip(&spans))
        .map(|((&mask, layout), span)| DecodeHead {
            mask,
            layout,
            slot_offset: span.slot_offset as usize,
        })
        .collect();
    let k = unpacked(&case.ring(&inputs.k, case.start + 1, 0));
    let v = unpacked(&case.ring(&inputs.v, case.start + 1, 0));
    attention_decode(
        case.shape(),
        &inputs.q,
        &k,
        &v,
        &heads,
        case.start,
        case.start + 1,
    )
    .o
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn decode_attention_equals_its_twin() {
    for dialect in reductions() {
        for (seed, case) in (101..).zip(cases::attention_decode()) {
            check_decode(dialect, seed, &case);
        }
    }
}

fn check_decode(dialect: Dialect, seed: u64, case: &AttentionCase) {
    let run = |inputs: &Inputs, forbidden, rounds| {
        run_decode_of(dialect, KvFormat::Sixteen, case, inputs, forbidden, rounds)
    };
    let inputs = case.inputs(seed);
    let expected = twin_decode(case, &inputs, &case.masks);
    // A part of one round, and some rounds in a part.
    let actual = [1, 3].map(|rounds| run(&inputs, NAN_PAIR, rounds));
    for actual in &actual {
        let error = compare(actual, &expected, attention_tolerance(case)).assert(case.name);
        println!("attention_decode, {}: {error:.2e}", case.name);
    }
    let [actual, _] = actual;
    // Prefill's definition says the same without any ring.
    let linear = twin_prefill(case, &inputs, &case.masks);
    let _ = compare(&expected, &linear, Tolerance::new(1e-12, 1e-12)).assert(case.name);
    assert!(
        bits(&actual) == bits(&run(&inputs, THREES, 1)),
        "{}: a forbidden slot",
        case.name
    );

    let q_pos = case.start;
    for change in [1i64, -1] {
        let changed: Vec<HeadMask> = case
            .masks
            .iter()
            .map(|&mask| HeadMask {
                window: window_changed(mask.window, change),
                ..mask
            })
            .collect();
        let differs = (case.masks.iter().zip(&changed)).any(|(a, b)| {
            (0..=q_pos).any(|k_pos| a.attends(q_pos, k_pos) != b.attends(q_pos, k_pos))
        });
        // Among scores of 80 one key holds all the weight of a single query.
        if differs && case.largest_score < 20.0 {
            let expected = twin_prefill(case, &inputs, &changed);
            let passed = compare(&actual, &expected, attention_tolerance(case)).passed();
            assert!(!passed, "{}: window {change:+} passed", case.name);
        }
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn caches_of_bytes_are_read_as_what_the_bytes_mean() {
    // A NaN for a scale, and another row's.
    let forbidden = [f32::NAN.to_bits(), 0x4040_4040];
    // Every case in the base; among subgroups each size has every other one, for what is read was compared with f16 in all.
    let decode = |(index, dialect): (usize, Dialect)| {
        let list = (101..).zip(cases::attention_decode());
        let own =
            move |&(seed, _): &(u64, AttentionCase)| index == 0 || seed % 2 == index as u64 % 2;
        list.filter(own).map(move |case| (dialect, case))
    };
    for (dialect, (seed, case)) in reductions().into_iter().enumerate().flat_map(decode) {
        let inputs = case.inputs(seed);
        let kept = Inputs {
            k: case.through_bytes(&inputs.k, case.start + 1),
            v: case.through_bytes(&inputs.v, case.start + 1),
            ..inputs.clone()
        };
        let expected = twin_prefill(&case, &kept, &case.masks);
        let [actual, other] =
            forbidden.map(|word| run_decode_of(dialect, KvFormat::Int8, &case, &inputs, word, 1));
        let error = compare(&actual, &expected, attention_tolerance(&case)).assert(case.name);
        println!("attention_decode.int8, {}: {error:.2e}", case.name);
        assert!(
            bits(&actual) == bits(&other),
            "{}: a forbidden slot",
            case.name
        );
        let unrounded = twin_prefill(&case, &inputs, &case.masks);
        assert!(
            !compare(&actual, &unrounded, attention_tolerance(&case)).passed(),
            "{}: rows that were never rounded passed",
            case.name
        );
    }
    for (seed, case) in (1..)
        .zip(cases::attention_prefill())
        .filter(|(_, case)| case.start > 0)
    {
        let inputs = case.inputs(seed);
        // The chunk's own rows are f16.
        let kept = Inputs {
            k: case.through_bytes(&inputs.k, case.start),
            v: case.through_bytes(&inputs.v, case.start),
            ..inputs.clone()
        };
        let expected = twin_prefill(&case, &kept, &case.masks);
        let [actual, other] =
            forbidden.map(|word| run_prefill_of(KvFormat::Int8, &case, &inputs, word));
        let error = compare(&actual, &expected, attention_tolerance(&case)).assert(case.name);
        println!("attention_prefill.int8, {}: {error:.2e}", case.name);
        assert!(
            bits(&actual) == bits(&other),
            "{}: a forbidden slot",
            case.name
        );
    }
}

/// The work list of one dense KV head in so many parts, and a position at which so many of them have keys: one key in
/// the last of those.
pub(crate) fn list_of_parts(shape: HeadShape, parts: u32, with_keys: u32) -> (WorkList, u32) {
    let round = shape.decode_round();
    let dense = HeadSpan {
        sink: 0,
        window: u32::MAX,
        ring: parts * round,
        slot_offset: 0,
    };
    let list = WorkList::of_rounds(&[dense], parts * round, shape, 1);
    assert_eq!(list.items[0].parts, parts);
    (list, (with_keys - 1) * round)
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn many_parts_are_joined_as_their_twin_says() {
    // Fewer parts than a workgroup takes at a time and many more, parts without keys behind them, two heads side by side.
    for (head_dim, parts) in [
        (64u32, 1u32),
        (64, 6),
        (80, 37),
        (8, 200),
        (256, 9),
        (128, 500),
    ] {
        let shape = HeadShape {
            heads: 2,
            kv_heads: 1,
            head_dim,
        };
        let mut random = Random::new(u64::from(parts));
        let width = head_dim as usize;
        let mut partials = Vec::new();
        let mut twin = [Vec::new(), Vec::new()];
        for _ in 0..parts {
            for own in &mut twin {
                let sum = random.spiked(width, 3.0);
                let (row_max, row_sum) = (20.0 * random.unit(), 1.5 + random.unit());
                partials.extend_from_slice(&sum);
                partials.extend([row_max, row_sum]);
                own.push(Part {
                    sum: sum.into_iter().map(f64::from).collect(),
                    row_max: row_max.into(),
                    row_sum: row_sum.into(),
                });
            }
        }
        // Parts without keys: what lies there is never read.
        partials.resize(partials.len() + 5 * 2 * (width + 2), f32::NAN);
        let (list, start) = list_of_parts(shape, parts + 5, parts);
        let joined = test_gpu().run(
            Kernel::MergeLse { codes: false },
            shape,
            (2 * head_dim / shape.merge_channels(), 1),
            &[
                ("state", Data::U32(&state(start, 1))),
                ("partials", Data::F32(&partials)),
                ("y", Data::Poison(2 * width)),
                ("items", Data::U32(cast_slice(&list.items))),
            ],
        );
        let actual = floats(&joined["y"]);
        let expected: Vec<f64> = twin.iter().flat_map(|parts| merge_lse(parts)).collect();
        let label = format!("{parts} parts of {head_dim} channels");
        let error = compare(&actual, &expected, MERGE).assert(&label);
        println!("merge_lse, {label}: {error:.2e}");
        let swapped = [&expected[width..], &expected[..width]].concat();
        assert!(
            !compare(&actual, &swapped, MERGE).passed(),
            "{label}: the other head passed"
        );
    }
}

fn window_changed(window: u32, change: i64) -> u32 {
    u32::try_from((i64::from(window) + change).clamp(1, i64::from(u32::MAX))).unwrap()
}
