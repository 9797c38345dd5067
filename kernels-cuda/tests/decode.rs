//! Decode attention over rings against its f64 twin, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests that report their errors"
)]

#[expect(dead_code, reason = "prefill uses more of it")]
mod cached;
#[path = "../../tests/src/cases.rs"]
#[expect(dead_code, unreachable_pub, reason = "the table of every backend")]
mod cases;
#[expect(dead_code, reason = "the layers in it serve the influence tests")]
mod twin;

use cached::{Batch, FORMATS, check_formats, kept, table};
use half::{bf16, f16};
use moa_kernels::{Decode, DecodeWorkspace, Gpu};
use moa_mask::{HeadMask, KvFormat};
use moa_reference::attention_decode::{DecodeHead, attention_decode};
use moa_reference::attention_prefill::AttentionShape;
use moa_reference::compare::{Comparison, Tolerance, compare};
use twin::Value;

const fn mask(sink: u32, window: u32) -> HeadMask {
    HeadMask { sink, window }
}

/// The kernel's outputs. Forbidden slots hold NaN or, without `poison`, noise; outputs hold NaN before the launch.
fn on_device<T: Value>(gpu: &Gpu, batch: &Batch<T>, format: KvFormat, poison: bool) -> Vec<f64> {
    let slots = batch.slots(|request| request.start + 1, poison);
    let (cache, kv) = slots.upload(gpu, batch.shape, format);
    let decode = Decode::new::<T>(gpu, &cache, format).unwrap();
    let mut workspace = DecodeWorkspace::new(gpu, [&decode]).unwrap();
    let q = batch.packed(|request| &request.q);
    let lens: Vec<u32> = batch.requests.iter().map(|r| r.start + 1).collect();
    let mut out = gpu.upload(&vec![T::of(f32::NAN); q.len()]).unwrap();
    // Twice: the second run finds what the first has left in the workspace.
    for _ in 0..2 {
        decode
            .run(
                gpu,
                &cache,
                &mut workspace,
                &gpu.upload(&q).unwrap(),
                &kv,
                &gpu.upload(&lens).unwrap(),
                batch.softmax_scale(),
                &mut out,
            )
            .unwrap();
    }
    let out = gpu.download(&out).unwrap();
    out.into_iter().map(T::get).collect()
}

fn tolerance<T: Value>() -> Tolerance {
    Tolerance::new(1.5 * T::STEP, T::STEP)
}

fn result<T: Value>(
    gpu: &Gpu,
    batch: &Batch<T>,
    format: KvFormat,
    masks: &[HeadMask],
) -> Comparison {
    let expected = batch.expected(masks, |r| r.start + 1, |row| kept(format, row));
    compare(
        &on_device(gpu, batch, format, true),
        &expected,
        tolerance::<T>(),
    )
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn the_case_table_agrees_with_the_twin() {
    let gpu = Gpu::open(0, None).unwrap();
    let cases = cases::attention_decode();
    table::<bf16>(&cases, |batch, format, masks| {
        result(&gpu, batch, format, masks)
    });
    table::<f16>(&cases, |batch, format, masks| {
        result(&gpu, batch, format, masks)
    });
}

fn ragged<T: Value>(shape: (u32, u32, u32), masks: &[HeadMask], seed: u64) -> Batch<T> {
    let steps = [
        (600, 598, 1),
        (600, 0, 1),
        (5000, 4443, 1),
        (300, 63, 1),
        (300, 64, 1),
        (90, 89, 1),
    ];
    Batch::random(shape, masks, &steps, 4.0, seed)
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn ragged_batches_agree_with_the_twin() {
    let gpu = Gpu::open(0, None).unwrap();
    let six = [
        mask(64, 3000),
        mask(128, 17),
        mask(0, 1),
        mask(4, 2),
        mask(64, 64),
        mask(0, 500),
    ];
    for (seed, (shape, masks)) in [
        ((3, 1, 64), &[mask(64, 64)][..]),
        ((4, 1, 128), &[mask(0, 100)]),
        ((7, 1, 64), &[mask(8, 1)]),
        ((8, 2, 128), &[mask(64, 1000), HeadMask::DENSE]),
        ((24, 2, 128), &[mask(64, 3000), mask(128, 17)]),
        ((6, 6, 128), &six),
    ]
    .into_iter()
    .enumerate()
    {
        let batch = ragged::<bf16>(shape, masks, seed as u64);
        check_formats(&format!("{shape:?}"), &batch, |batch, format, masks| {
            result(&gpu, batch, format, masks)
        });
    }
}

/// More parts than are joined at once, for every way in which warps share rows.
#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn many_parts_are_joined_in_turns() {
    let gpu = Gpu::open(0, None).unwrap();
    for (seed, shape) in [
        (1, 1, 128),
        (2, 1, 64),
        (3, 1, 128),
        (4, 1, 64),
        (9, 1, 128),
    ]
    .into_iter()
    .enumerate()
    {
        let masks = [mask(64, 9000)];
        let steps = [(12_000, 11_500, 1)];
        let batch = Batch::<bf16>::random(shape, &masks, &steps, 4.0, seed as u64);
        check_formats(&format!("{shape:?}"), &batch, |batch, format, masks| {
            result(&gpu, batch, format, masks)
        });
    }
}

/// The same from the other twin, which walks slots instead of positions.
#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn slots_are_read_as_the_ring_lays_them_out() {
    let gpu = Gpu::open(0, None).unwrap();
    let masks = [mask(64, 300), mask(0, 61)];
    let batch = Batch::<bf16>::random((8, 2, 128), &masks, &[(4000, 3001, 1)], 4.0, 5);
    let slots = batch.slots(|request| request.start + 1, false);
    let heads: Vec<DecodeHead> = slots.requests[0]
        .heads
        .iter()
        .map(|&(mask, layout, offset)| DecodeHead {
            mask,
            layout,
            slot_offset: offset as usize,
        })
        .collect();
    let shape = AttentionShape {
        heads: 8,
        kv_heads: 2,
        head_dim: 128,
    };
    let f32s = |values: &[bf16]| -> Vec<f32> { values.iter().map(|x| x.to_f32()).collect() };
    let expected = attention_decode(
        shape,
        &f32s(&batch.requests[0].q),
        &f32s(&slots.k),
        &f32s(&slots.v),
        &heads,
        3001,
        3002,
    );
    let actual = on_device(&gpu, &batch, KvFormat::Sixteen, false);
    let _ = compare(&actual, &expected.o, tolerance::<bf16>()).assert("wrapped rings");
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn forbidden_slots_change_no_bit() {
    let gpu = Gpu::open(0, None).unwrap();
    let batch = ragged::<bf16>((8, 2, 64), &[mask(64, 100), mask(3, 17)], 9);
    for format in FORMATS {
        let (poisoned, noisy) = (
            on_device(&gpu, &batch, format, true),
            on_device(&gpu, &batch, format, false),
        );
        assert_eq!(poisoned, noisy, "{format:?}");
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_window_one_key_off_is_seen() {
    let gpu = Gpu::open(0, None).unwrap();
    let masks = [mask(64, 50)];
    let batch = Batch::<bf16>::random((4, 1, 128), &masks, &[(600, 499, 1)], 4.0, 1);
    for format in FORMATS {
        assert!(result(&gpu, &batch, format, &masks).passed());
        for wrong in [mask(64, 49), mask(64, 51), mask(63, 50)] {
            assert!(
                !result(&gpu, &batch, format, &[wrong]).passed(),
                "{wrong:?}"
            );
        }
    }
}

/// One recorded launch serves every length, since lengths are read on the device; a request of length 0 costs nothing.
#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_recorded_launch_follows_the_lengths() {
    let gpu = Gpu::open(0, None).unwrap();
    let masks = [mask(64, 100)];
    let full = Batch::<bf16>::random(
        (4, 1, 64),
        &masks,
        &[(600, 499, 1), (600, 299, 1), (600, 9, 1)],
        4.0,
        3,
    );
    let slots = full.slots(|request| request.start + 1, false);
    let (cache, kv) = slots.upload(&gpu, full.shape, KvFormat::Sixteen);
    let decode = Decode::new::<bf16>(&gpu, &cache, KvFormat::Sixteen).unwrap();
    let mut workspace = DecodeWorkspace::new(&gpu, [&decode]).unwrap();
    let q = gpu.upload(&full.packed(|request| &request.q)).unwrap();
    let mut lens = gpu.upload(&[1u32; 3]).unwrap();
    let mut out = gpu.zeros::<bf16>(q.len()).unwrap();
    let mut run = || {
        decode.run(
            &gpu,
            &cache,
            &mut workspace,
            &q,
            &kv,
            &lens,
            full.softmax_scale(),
            &mut out,
        )
    };
    run().unwrap();
    let graph = gpu.record(run).unwrap();
    gpu.write(&mut lens, 0, &[500u32, 0, 10]).unwrap();
    gpu.replay(&graph).unwrap();
    let actual: Vec<f64> = gpu
        .download(&out)
        .unwrap()
        .into_iter()
        .map(Value::get)
        .collect();
    let mut expected = full.expected(&masks, |_| 0, <[f32]>::to_vec);
    expected[256..512].fill(0.0);
    let _ = compare(&actual, &expected, tolerance::<bf16>()).assert("after a replay");
}
