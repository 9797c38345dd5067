//! What happens to keys and values before attention: rotation, rounding, and their way into the rings.

use bytemuck::cast_slice;
use moa_mask::{KvFormat, RingLayout};
use moa_reference::compare::{Tolerance, compare};
use moa_reference::kv_commit::kv_commit;
use moa_reference::qkv_rows::to_bytes;
use moa_shaders::{Kernel, KvTarget};
use moa_tests::attention::{packed, unpacked};
use moa_tests::cases;
use moa_tests::gpu::{Data, POISON, floats, test_gpu};
use moa_tests::random::Random;

use crate::state;

const ROPE: Tolerance = Tolerance::new(2e-6, 2e-6);
/// One rounding to f16, and a different one where f32 lands across a tie.
const STORED: Tolerance = Tolerance::new(1e-6, 1.05e-3);

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn rope_rotates_and_stores() {
    for case in cases::attention_prefill() {
        let shape = case.head_shape();
        let mut random = Random::new(7);
        let width = |heads: u32| (case.len * heads * case.head_dim) as usize;
        let (q, k, v) = (
            random.spiked(width(case.heads), 2.0),
            random.spiked(width(case.kv_heads), 2.0),
            random.spiked(width(case.kv_heads), 2.0),
        );
        let rope = moa_format::RopeConfig {
            theta: 10_000.0,
            scaling: None,
        };
        let (cos, sin) = rope.cos_sin(case.head_dim, 0..case.context);
        let table: Vec<f32> = cos
            .iter()
            .zip(&sin)
            .flat_map(|(&cos, &sin)| [cos, sin])
            .collect();
        let units = (case.heads + 2 * case.kv_heads) * case.head_dim / 4;
        let inv_freq = rope.inv_freq(case.head_dim);
        let positions: Vec<u32> = (case.start..case.start + case.len).collect();
        let rotated = |x: &[f32], heads: u32, positions: &[u32]| {
            moa_reference::rope::rope(x, positions, heads as usize, &inv_freq, false)
        };

        let outputs = test_gpu().run(
            Kernel::Rope(KvTarget::Chunk),
            shape,
            (units.div_ceil(64), case.len),
            &[
                ("state", Data::U32(&state(case.start, case.len))),
                ("q", Data::F32(&q)),
                ("k", Data::F32(&k)),
                ("v", Data::F32(&v)),
                ("table", Data::F32(&table)),
                ("k_out", Data::Poison(k.len() / 2)),
                ("v_out", Data::Poison(v.len() / 2)),
            ],
        );
        let expected_q = rotated(&q, case.heads, &positions);
        let error = compare(&floats(&outputs["q"]), &expected_q, ROPE).assert(case.name);
        println!("rope, {}: {error:.2e}", case.name);
        let expected_k = rotated(&k, case.kv_heads, &positions);
        let _ = compare(&unpacked(&outputs["k_out"]), &expected_k, STORED).assert(case.name);
        assert_eq!(
            outputs["v_out"],
            packed(&v),
            "{}: V is rounded and nothing else",
            case.name
        );
        // Controls: a neighboring position, and no rotation at all.
        let next: Vec<u32> = positions.iter().map(|position| position + 1).collect();
        assert!(
            !compare(
                &floats(&outputs["q"]),
                &rotated(&q, case.heads, &next),
                ROPE
            )
            .passed()
        );
        assert!(
            !compare(
                &unpacked(&outputs["k_out"]),
                &rotated(&k, case.kv_heads, &next),
                STORED
            )
            .passed()
        );

        // Straight into the ring: the first token alone; every other word stays as it was.
        let ring_words = case.ring(&[], 0, POISON).len();
        let one = |x: &[f32], heads: u32| x[..(heads * case.head_dim) as usize].to_vec();
        let spans = case.spans();
        let outputs = test_gpu().run(
            Kernel::Rope(KvTarget::Ring),
            shape,
            (units.div_ceil(64), 1),
            &[
                ("state", Data::U32(&state(case.start, 1))),
                ("q", Data::F32(&one(&q, case.heads))),
                ("k", Data::F32(&one(&k, case.kv_heads))),
                ("v", Data::F32(&one(&v, case.kv_heads))),
                ("table", Data::F32(&table)),
                ("k_out", Data::Poison(ring_words)),
                ("v_out", Data::Poison(ring_words)),
                ("spans", Data::U32(cast_slice(&spans))),
            ],
        );
        let row_words = (case.head_dim / 2) as usize;
        for (name, stored) in [
            ("k_out", &expected_k),
            ("v_out", &v.iter().copied().map(f64::from).collect()),
        ] {
            let mut words = outputs[name].clone();
            for (kv_head, (span, layout)) in spans.iter().zip(case.layouts()).enumerate() {
                let slot = span.slot_offset + layout.slot(case.start);
                let row = &mut words[slot as usize * row_words..][..row_words];
                let expected = &stored[kv_head * 2 * row_words..][..2 * row_words];
                let _ = compare(&unpacked(row), expected, STORED).assert(case.name);
                row.fill(POISON);
            }
            assert!(
                words.iter().all(|&word| word == POISON),
                "{}: one writer, one slot",
                case.name
            );
        }
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn commits_write_each_slot_once() {
    for case in cases::attention_prefill() {
        let row_words = (case.head_dim / 2) as usize;
        let words = case.len as usize * case.kv_heads as usize * row_words;
        let mut random = Random::new(3);
        let k: Vec<u32> = (0..words).map(|_| random.below(1 << 30)).collect();
        let v: Vec<u32> = (0..words).map(|_| random.below(1 << 30)).collect();
        let spans = case.spans();
        let ring_words = case.ring(&[], 0, POISON).len();
        let outputs = test_gpu().run(
            Kernel::KvCommit(KvFormat::Sixteen),
            case.head_shape(),
            ((case.kv_heads * case.head_dim / 4).div_ceil(64), case.len),
            &[
                ("state", Data::U32(&state(case.start, case.len))),
                ("spans", Data::U32(cast_slice(&spans))),
                ("k_chunk", Data::U32(&k)),
                ("v_chunk", Data::U32(&v)),
                ("k_ring", Data::Poison(ring_words)),
                ("v_ring", Data::Poison(ring_words)),
            ],
        );
        // One KV head's rows out of [token][kv_head].
        let own_rows = |chunk: &[u32], kv_head: usize| -> Vec<u32> {
            let heads = chunk
                .chunks_exact(row_words)
                .skip(kv_head)
                .step_by(case.kv_heads as usize);
            heads.flatten().copied().collect()
        };
        for (name, chunk) in [("k_ring", &k), ("v_ring", &v)] {
            let mut expected = vec![POISON; ring_words];
            for (kv_head, (span, layout)) in spans.iter().zip(case.layouts()).enumerate() {
                let rows = own_rows(chunk, kv_head);
                let slots = &mut expected[span.slot_offset as usize * row_words..]
                    [..layout.slots() as usize * row_words];
                kv_commit(slots, &rows, row_words, layout, case.start);
            }
            assert!(outputs[name] == expected, "{}: {name}", case.name);
            // The control: one slot less, and the twin says something else.
            let mut narrower = vec![POISON; ring_words];
            for (kv_head, (span, layout)) in spans.iter().zip(case.layouts()).enumerate() {
                let rows = own_rows(chunk, kv_head);
                let layout = RingLayout {
                    ring: layout.ring - 1,
                    ..layout
                };
                let slots = &mut narrower[span.slot_offset as usize * row_words..];
                let slots = &mut slots[..layout.slots() as usize * row_words];
                kv_commit(slots, &rows, row_words, layout, case.start);
            }
            let wraps = case
                .layouts()
                .iter()
                .any(|layout| case.start + case.len > layout.slots());
            assert!(
                !wraps || outputs[name] != narrower,
                "{}: a smaller ring passed",
                case.name
            );
        }
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn commits_to_bytes_round_each_row_by_its_largest_value() {
    for case in cases::attention_prefill() {
        let width = case.head_dim as usize;
        let values = case.len as usize * case.kv_heads as usize * width;
        let mut random = Random::new(5);
        let mut rows = || {
            let mut rows = unpacked(&packed(&random.spiked(values, 3.0)));
            // A row of zeros has a scale of zero, and no NaN.
            rows[..width].fill(0.0);
            rows
        };
        let (k, v) = (rows(), rows());
        let spans = case.spans();
        let row_words = 1 + width / 4;
        let words = case.ring(&[], 0, POISON).len() * 2 / width * row_words;
        let outputs = test_gpu().run(
            Kernel::KvCommit(KvFormat::Int8),
            case.head_shape(),
            (case.kv_heads, case.len),
            &[
                ("state", Data::U32(&state(case.start, case.len))),
                ("spans", Data::U32(cast_slice(&spans))),
                ("k_chunk", Data::U32(&packed(&k))),
                ("v_chunk", Data::U32(&packed(&v))),
                ("k_ring", Data::Poison(words)),
                ("v_ring", Data::Poison(words)),
            ],
        );
        for (name, rows) in [("k_ring", &k), ("v_ring", &v)] {
            // Which token's row each slot should hold.
            let mut owners = vec![None; words / row_words];
            for (kv_head, (span, layout)) in spans.iter().zip(case.layouts()).enumerate() {
                let tokens: Vec<Option<usize>> = (0..case.len as usize)
                    .map(|token| Some(token * case.kv_heads as usize + kv_head))
                    .collect();
                let slots = &mut owners[span.slot_offset as usize..][..layout.slots() as usize];
                kv_commit(slots, &tokens, 1, layout, case.start);
            }
            for (owner, stored) in owners.iter().zip(outputs[name].chunks(row_words)) {
                let Some(owner) = owner else {
                    assert!(stored.iter().all(|&word| word == POISON), "{}", case.name);
                    continue;
                };
                let row = &rows[owner * width..][..width];
                let (bytes, scale) = to_bytes(row);
                let stored_scale = f32::from_bits(stored[0]);
                assert!(
                    (stored_scale - scale).abs() <= 1e-6 * scale,
                    "{}: {name}",
                    case.name
                );
                let stored_bytes: Vec<i8> = (stored[1..].iter())
                    .flat_map(|word| word.to_le_bytes().map(u8::cast_signed))
                    .collect();
                for ((&value, &byte), &stored) in row.iter().zip(&bytes).zip(&stored_bytes) {
                    // A quotient that is not rounded correctly may fall on the other side of a tie.
                    let from_tie = (f64::from(value) / f64::from(scale)).fract().abs() - 0.5;
                    assert!(
                        byte == stored || (from_tie.abs() < 1e-4 && byte.abs_diff(stored) == 1),
                        "{}: {name}: {value} at {scale} is {byte}, not {stored}",
                        case.name
                    );
                }
            }
        }
    }
}
