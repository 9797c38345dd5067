//! Decode attention over rings against its f64 twin, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

#[expect(dead_code, reason = "the layers in it serve the influence tests")]
mod twin;

use half::{bf16, f16};
use moa_kernels::{Decode, DecodeRequest, DecodeShape, ElementType, Gpu};
use moa_mask::{HeadMask, RingLayout};
use moa_reference::attention_decode::{DecodeHead, attention_decode};
use moa_reference::attention_prefill::AttentionShape;
use moa_reference::compare::{Comparison, Tolerance, compare};
use twin::{Random, Value};

const SLACK: u32 = 64;

struct Case {
    shape: DecodeShape,
    masks: Vec<HeadMask>,
    /// Context and tokens written, by request.
    requests: Vec<(u32, u32)>,
    logits: f32,
}

const fn mask(sink: u32, window: u32) -> HeadMask {
    HeadMask { sink, window }
}

fn case(
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    masks: &[HeadMask],
    requests: &[(u32, u32)],
) -> Case {
    Case {
        shape: DecodeShape {
            heads,
            kv_heads,
            head_dim,
        },
        masks: masks.to_vec(),
        requests: requests.to_vec(),
        logits: 1.0,
    }
}

/// The kernel's outputs and the twin's under `wrong` instead of the case's masks; slots that nobody may read hold NaN.
fn both<T: Value>(gpu: &Gpu, case: &Case, seed: u64, wrong: &[HeadMask]) -> (Vec<f64>, Vec<f64>) {
    let (shape, dim) = (case.shape, case.shape.head_dim as usize);
    let mut random = Random(seed);
    let (mut requests, mut slots) = (Vec::new(), 3);
    for &(context, _) in &case.requests {
        let heads = case.masks.iter().map(|&mask| {
            let layout = RingLayout::new(mask, context, SLACK);
            let offset = slots;
            slots += layout.slots();
            (mask, layout, offset)
        });
        requests.push(DecodeRequest {
            heads: heads.collect(),
        });
    }
    let slots = slots as usize;
    let mut k = vec![T::of(f32::NAN); slots * dim];
    let mut v = k.clone();
    for (request, &(_, len)) in requests.iter().zip(&case.requests) {
        for &(mask, layout, offset) in &request.heads {
            for slot in 0..layout.slots() {
                // One more on each side, so that a wrong window finds values to be wrong with.
                let wider = HeadMask {
                    sink: mask.sink,
                    window: mask.window.saturating_add(1),
                };
                if layout
                    .position(slot, len)
                    .is_some_and(|k_pos| wider.attends(len - 1, k_pos))
                {
                    let at = (offset + slot) as usize * dim;
                    k[at..at + dim].copy_from_slice(&random.values(dim, 1.0));
                    v[at..at + dim].copy_from_slice(&random.values(dim, 1.0));
                }
            }
        }
    }
    let q: Vec<T> = random.values(
        case.requests.len() * shape.heads as usize * dim,
        case.logits,
    );
    let mut decode = Decode::new::<T>(gpu, shape, &requests, slots).unwrap();
    let lens: Vec<u32> = case.requests.iter().map(|r| r.1).collect();
    let mut out = gpu.upload(&vec![T::of(f32::NAN); q.len()]).unwrap();
    decode
        .run(
            gpu,
            &gpu.upload(&q).unwrap(),
            &gpu.upload(&k).unwrap(),
            &gpu.upload(&v).unwrap(),
            &gpu.upload(&lens).unwrap(),
            1.0 / (dim as f32).sqrt(),
            &mut out,
        )
        .unwrap();
    let actual = gpu
        .download(&out)
        .unwrap()
        .into_iter()
        .map(T::get)
        .collect();
    let f32s = |values: &[T]| -> Vec<f32> { values.iter().map(|x| x.get() as f32).collect() };
    let (q, k, v) = (f32s(&q), f32s(&k), f32s(&v));
    let twin_shape = AttentionShape {
        heads: shape.heads as usize,
        kv_heads: shape.kv_heads as usize,
        head_dim: dim,
    };
    let mut expected = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let heads: Vec<DecodeHead> = request
            .heads
            .iter()
            .zip(wrong)
            .map(|(&(_, layout, offset), &mask)| DecodeHead {
                mask,
                layout,
                slot_offset: offset as usize,
            })
            .collect();
        let rows = shape.heads as usize * dim;
        let len = case.requests[i].1;
        expected.extend(
            attention_decode(
                twin_shape,
                &q[i * rows..][..rows],
                &k,
                &v,
                &heads,
                len - 1,
                len,
            )
            .o,
        );
    }
    (actual, expected)
}

fn result<T: Value>(gpu: &Gpu, case: &Case, seed: u64, wrong: &[HeadMask]) -> Comparison {
    let (actual, expected) = both::<T>(gpu, case, seed, wrong);
    let step = match T::TYPE {
        ElementType::Bf16 => 1.0 / 256.0,
        ElementType::F16 => 1.0 / 2048.0,
    };
    compare(&actual, &expected, Tolerance::new(1.5 * step, step))
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn ragged_batches_agree_with_the_twin() {
    let gpu = Gpu::open(0, None).unwrap();
    let wrapped = [
        (600, 599),
        (600, 1),
        (5000, 4444),
        (300, 64),
        (300, 65),
        (90, 90),
    ];
    let mut cases = [
        case(1, 1, 64, &[HeadMask::DENSE], &[(1, 1)]),
        case(3, 1, 64, &[mask(64, 64)], &wrapped),
        case(4, 1, 128, &[mask(0, 100)], &wrapped),
        case(7, 1, 64, &[mask(8, 1)], &wrapped),
        case(8, 2, 128, &[mask(64, 1000), HeadMask::DENSE], &wrapped),
        case(24, 2, 128, &[mask(64, 3000), mask(128, 17)], &wrapped),
        case(
            6,
            6,
            128,
            &[
                mask(64, 3000),
                mask(128, 17),
                mask(0, 1),
                mask(4, 2),
                mask(64, 64),
                mask(0, 500),
            ],
            &wrapped,
        ),
    ];
    cases[4].logits = 25.0;
    for (seed, case) in cases.iter().enumerate() {
        for (name, result) in [
            ("bf16", result::<bf16>(&gpu, case, seed as u64, &case.masks)),
            (
                "f16",
                result::<f16>(&gpu, case, seed as u64 + 20, &case.masks),
            ),
        ] {
            println!("{name} {:?}: error {:.2e}", case.shape, result.max_error);
            let _ = result.assert(&format!("{name} {:?} {:?}", case.shape, case.masks));
        }
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_window_one_key_off_is_seen() {
    let gpu = Gpu::open(0, None).unwrap();
    let case = case(4, 1, 128, &[mask(64, 50)], &[(600, 500)]);
    assert!(result::<bf16>(&gpu, &case, 1, &[mask(64, 50)]).passed());
    for wrong in [mask(64, 49), mask(64, 51), mask(63, 50)] {
        assert!(
            !result::<bf16>(&gpu, &case, 1, &[wrong]).passed(),
            "{wrong:?}"
        );
    }
}
