//! Prefill of chunks over rings and their own keys, and the way of rows into caches, against f64 twins, on a device. Shown as ignored
//! without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests that report their errors"
)]

mod cached;
#[path = "../../tests/src/cases.rs"]
#[expect(dead_code, unreachable_pub, reason = "the table of every backend")]
mod cases;
#[expect(dead_code, reason = "the layers in it serve the influence tests")]
mod twin;

use cached::{Batch, FORMATS, Request, Slots, check_formats, kept, table};
use half::{bf16, f16};
use moa_kernels::{CacheSlots, Chunk, ChunkPart, Gpu, KvBuffers, Prefill, QkvRows, QkvTables};
use moa_mask::{HeadMask, KvFormat};
use moa_reference::compare::{Comparison, Tolerance, compare};
use moa_reference::kv_commit::kv_commit;
use moa_reference::qkv_rows::{from_bytes, qkv_rows, to_bytes};
use twin::{Random, Value};

const fn mask(sink: u32, window: u32) -> HeadMask {
    HeadMask { sink, window }
}

fn chunk<T: Value>(gpu: &Gpu, batch: &Batch<T>) -> Chunk {
    let parts: Vec<ChunkPart> = batch
        .requests
        .iter()
        .enumerate()
        .map(|(request, step)| ChunkPart {
            request: request as u32,
            start: step.start,
            len: step.len,
        })
        .collect();
    Chunk::new(gpu, batch.shape, batch.requests.len(), &parts).unwrap()
}

/// K and V of all slots in 16 bits, as prefill reads them.
fn readable<T: Value>(
    gpu: &Gpu,
    batch: &Batch<T>,
    cache: &CacheSlots,
    kv: KvBuffers<T>,
) -> (moa_kernels::Buffer<T>, moa_kernels::Buffer<T>) {
    let dim = batch.shape.head_dim as usize;
    match kv {
        KvBuffers::Sixteen { k, v } => (k, v),
        kv @ KvBuffers::Int8 { .. } => {
            let poisoned = || {
                gpu.upload(&vec![T::of(f32::NAN); cache.slots() * dim])
                    .unwrap()
            };
            let (mut k, mut v) = (poisoned(), poisoned());
            QkvRows::new::<T>(gpu, batch.shape, KvFormat::Int8)
                .unwrap()
                .widen(gpu, cache, &kv, (&mut k, &mut v))
                .unwrap();
            (k, v)
        }
    }
}

/// The kernel's outputs. Forbidden slots hold NaN or, without `poison`, noise; outputs hold NaN before the launch.
fn on_device<T: Value>(gpu: &Gpu, batch: &Batch<T>, format: KvFormat, poison: bool) -> Vec<f64> {
    let slots = batch.slots(|request| request.start, poison);
    let (cache, kv) = slots.upload(gpu, batch.shape, format);
    let (cached_k, cached_v) = readable(gpu, batch, &cache, kv);
    let q = gpu.upload(&batch.packed(|r| &r.q)).unwrap();
    // Room behind the chunk's rows is full of NaN.
    let fresh = |which: fn(&Request<T>) -> &Vec<T>| {
        let mut rows = batch.packed(|r| batch.fresh(r, which(r)));
        rows.extend(std::iter::repeat_n(T::of(f32::NAN), 4096));
        gpu.upload(&rows).unwrap()
    };
    let (k, v) = (fresh(|r| &r.k), fresh(|r| &r.v));
    let mut out = gpu.upload(&vec![T::of(f32::NAN); q.len()]).unwrap();
    Prefill::new::<T>(gpu, batch.shape)
        .unwrap()
        .run(
            gpu,
            &cache,
            &chunk(gpu, batch),
            &q,
            (&k, &v),
            (&cached_k, &cached_v),
            batch.softmax_scale(),
            &mut out,
        )
        .unwrap();
    let out = gpu.download(&out).unwrap();
    out.into_iter().map(T::get).collect()
}

fn result<T: Value>(
    gpu: &Gpu,
    batch: &Batch<T>,
    format: KvFormat,
    masks: &[HeadMask],
) -> Comparison {
    // Bytes are read back rounded to 16 bits.
    let rounded = |row: &[f32]| -> Vec<f32> {
        let row = kept(format, row);
        row.into_iter().map(|x| T::of(x).get() as f32).collect()
    };
    let expected = batch.expected(masks, |r| r.start, rounded);
    let tolerance = Tolerance::new(1.5 * T::STEP, T::STEP);
    compare(&on_device(gpu, batch, format, true), &expected, tolerance)
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn the_case_table_agrees_with_the_twin() {
    let gpu = Gpu::open(0, None).unwrap();
    let cases = cases::attention_prefill();
    table::<bf16>(&cases, |batch, format, masks| {
        result(&gpu, batch, format, masks)
    });
    table::<f16>(&cases, |batch, format, masks| {
        result(&gpu, batch, format, masks)
    });
}

/// From an empty cache, over wrapped rings, longer than rings, one row, no multiple of a tile: all in one launch.
fn ragged<T: Value>(shape: (u32, u32, u32), masks: &[HeadMask], seed: u64) -> Batch<T> {
    let steps = [
        (700, 0, 200),
        (3000, 2500, 130),
        (900, 333, 1),
        (600, 30, 64),
        (2000, 1000, 257),
    ];
    Batch::random(shape, masks, &steps, 4.0, seed)
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn several_requests_in_one_chunk_agree_with_the_twin() {
    let gpu = Gpu::open(0, None).unwrap();
    for (seed, (shape, masks)) in [
        (
            (3, 3, 64),
            &[mask(64, 64), mask(16, 300), mask(100, 65)][..],
        ),
        ((4, 1, 128), &[mask(64, 500)]),
        ((7, 1, 64), &[mask(8, 20)]),
        ((8, 2, 128), &[mask(64, 1000), HeadMask::DENSE]),
        ((2, 2, 128), &[mask(0, 1), mask(128, 128)]),
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

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn forbidden_slots_change_no_bit() {
    let gpu = Gpu::open(0, None).unwrap();
    let batch = ragged::<bf16>((4, 2, 128), &[mask(64, 100), mask(3, 17)], 9);
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
    let batch = Batch::<bf16>::random((4, 1, 128), &masks, &[(600, 400, 70)], 4.0, 1);
    assert!(result(&gpu, &batch, KvFormat::Sixteen, &masks).passed());
    for wrong in [mask(64, 49), mask(64, 51), mask(63, 50), mask(65, 50)] {
        assert!(
            !result(&gpu, &batch, KvFormat::Sixteen, &[wrong]).passed(),
            "{wrong:?}"
        );
    }
}

/// The slots on the host after the chunk: by the twin, row by row.
fn committed<T: Value>(batch: &Batch<T>, mut slots: Slots<T>) -> Slots<T> {
    let (dim, kv_heads) = (batch.shape.head_dim as usize, batch.shape.kv_heads as usize);
    for (request, step) in slots.requests.iter().zip(&batch.requests) {
        for (kv_head, &(_, layout, offset)) in request.heads.iter().enumerate() {
            let range = offset as usize * dim..(offset + layout.slots()) as usize * dim;
            for (tensor, to) in [(&step.k, &mut slots.k), (&step.v, &mut slots.v)] {
                let fresh = batch.fresh(step, tensor);
                let rows: Vec<T> = fresh
                    .chunks(dim)
                    .skip(kv_head)
                    .step_by(kv_heads)
                    .flatten()
                    .copied()
                    .collect();
                kv_commit(&mut to[range.clone()], &rows, dim, layout, step.start);
            }
        }
    }
    slots
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_chunk_enters_its_slots_and_no_others() {
    let gpu = Gpu::open(0, None).unwrap();
    let batch = ragged::<bf16>(
        (6, 3, 128),
        &[mask(64, 100), mask(3, 17), HeadMask::DENSE],
        4,
    );
    let slots = batch.slots(|request| request.start, false);
    let rows = QkvRows::new::<bf16>(&gpu, batch.shape, KvFormat::Sixteen).unwrap();
    let (cache, mut kv) = slots.upload(&gpu, batch.shape, KvFormat::Sixteen);
    let fresh_k = gpu.upload(&batch.packed(|r| batch.fresh(r, &r.k))).unwrap();
    let fresh_v = gpu.upload(&batch.packed(|r| batch.fresh(r, &r.v))).unwrap();
    let chunk = chunk(&gpu, &batch);
    rows.commit(&gpu, &cache, &chunk, (&fresh_k, &fresh_v), &mut kv)
        .unwrap();
    let expected = committed(&batch, slots.clone());
    let KvBuffers::Sixteen { k, v } = &kv else {
        unreachable!()
    };
    assert_eq!(gpu.download(k).unwrap(), expected.k);
    assert_eq!(gpu.download(v).unwrap(), expected.v);

    // Bytes: the same slots, each row as the twin makes it; others keep what they had.
    let rows = QkvRows::new::<bf16>(&gpu, batch.shape, KvFormat::Int8).unwrap();
    let (cache, mut kv) = slots.upload(&gpu, batch.shape, KvFormat::Int8);
    rows.commit(&gpu, &cache, &chunk, (&fresh_k, &fresh_v), &mut kv)
        .unwrap();
    let (_, by_twin) = expected.upload(&gpu, batch.shape, KvFormat::Int8);
    let (
        KvBuffers::Int8 { k, v, scales },
        KvBuffers::Int8 {
            k: twin_k,
            v: twin_v,
            scales: twin_scales,
        },
    ) = (&kv, &by_twin)
    else {
        unreachable!()
    };
    assert_eq!(gpu.download(k).unwrap(), gpu.download(twin_k).unwrap());
    assert_eq!(gpu.download(v).unwrap(), gpu.download(twin_v).unwrap());
    assert_eq!(
        gpu.download(scales).unwrap(),
        gpu.download(twin_scales).unwrap()
    );
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn projections_become_queries_keys_and_values() {
    let gpu = Gpu::open(0, None).unwrap();
    for head_dim in [64u32, 128] {
        let masks = [mask(8, 40), mask(0, 70)];
        let batch = Batch::<bf16>::random(
            (6, 2, head_dim),
            &masks,
            &[(300, 100, 1), (300, 7, 1)],
            1.0,
            2,
        );
        let shape = moa_reference::attention_prefill::AttentionShape {
            heads: 6,
            kv_heads: 2,
            head_dim: head_dim as usize,
        };
        let half = head_dim as usize / 2;
        let inv_freq: Vec<f64> = (0..half)
            .map(|i| 1e4f64.powf(-(i as f64) / half as f64))
            .collect();
        let angles: Vec<f32> = (0..300)
            .flat_map(|position| {
                inv_freq.iter().flat_map(move |freq| {
                    let (sin, cos) = (f64::from(position) * freq).sin_cos();
                    [cos as f32, sin as f32]
                })
            })
            .collect();
        let mut random = Random(8);
        let width = (6 + 4) * head_dim as usize;
        let x: Vec<bf16> = random.values(2 * width, 1.0);
        let bias: Vec<f32> = (0..width).map(|_| random.normal()).collect();
        let x_f32: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        let expected = qkv_rows(shape, &x_f32, &bias, &[100, 7], &inv_freq);
        let slots = batch.slots(|request| request.start, true);
        let (angles, bias) = (gpu.upload(&angles).unwrap(), gpu.upload(&bias).unwrap());
        let x = gpu.upload(&x).unwrap();
        let tables = QkvTables {
            angles: &angles,
            bias: Some(&bias),
        };
        let nan = |rows: usize| {
            gpu.upload(&vec![bf16::NAN; rows * head_dim as usize])
                .unwrap()
        };
        let close = |label: &str, actual: &[f64], expected: &[f64]| {
            let result = compare(actual, expected, Tolerance::new(1e-5, 1.01 / 256.0));
            println!("{label} {head_dim}: error {:.2e}", result.max_error);
            let _ = result.assert(label);
        };
        let get = |values: Vec<bf16>| -> Vec<f64> { values.into_iter().map(Value::get).collect() };

        let rows = QkvRows::new::<bf16>(&gpu, batch.shape, KvFormat::Sixteen).unwrap();
        let (mut q, mut k, mut v) = (nan(12), nan(4), nan(4));
        rows.split(
            &gpu,
            &chunk(&gpu, &batch),
            &x,
            tables,
            &mut q,
            (&mut k, &mut v),
        )
        .unwrap();
        let (split_k, split_v) = (gpu.download(&k).unwrap(), gpu.download(&v).unwrap());
        close("q", &get(gpu.download(&q).unwrap()), &expected.q);
        close("k", &get(split_k.clone()), &expected.k);
        close("v", &get(split_v.clone()), &expected.v);

        // Single tokens: the first request moves on, the second is idle.
        for format in FORMATS {
            let rows = QkvRows::new::<bf16>(&gpu, batch.shape, format).unwrap();
            let (cache, mut kv) = slots.upload(&gpu, batch.shape, format);
            let lens = gpu.upload(&[101u32, 0]).unwrap();
            let mut alone = nan(12);
            rows.append(&gpu, &cache, &x, tables, &lens, &mut alone, &mut kv)
                .unwrap();
            let q = gpu.download(&q).unwrap();
            let alone = gpu.download(&alone).unwrap();
            assert_eq!(alone[..alone.len() / 2], q[..q.len() / 2]);
            assert!(alone[alone.len() / 2..].iter().all(|x| x.is_nan()), "idle");
            let dim = head_dim as usize;
            let mut wanted = slots.clone();
            for (kv_head, &(_, layout, offset)) in slots.requests[0].heads.iter().enumerate() {
                let to = (offset + layout.slot(100)) as usize * dim;
                wanted.k[to..to + dim].copy_from_slice(&split_k[kv_head * dim..][..dim]);
                wanted.v[to..to + dim].copy_from_slice(&split_v[kv_head * dim..][..dim]);
            }
            let bits =
                |values: Vec<bf16>| -> Vec<u16> { values.into_iter().map(bf16::to_bits).collect() };
            match &kv {
                KvBuffers::Sixteen { k, v } => {
                    assert_eq!(bits(gpu.download(k).unwrap()), bits(wanted.k));
                    assert_eq!(bits(gpu.download(v).unwrap()), bits(wanted.v));
                }
                KvBuffers::Int8 { k, scales, .. } => {
                    let (bytes, scales) = (gpu.download(k).unwrap(), gpu.download(scales).unwrap());
                    let at = (slots.requests[0].heads[1].2 + slots.requests[0].heads[1].1.slot(100))
                        as usize;
                    let row: Vec<f32> = split_k[dim..2 * dim].iter().map(|x| x.to_f32()).collect();
                    let (twin, scale) = to_bytes(&row);
                    assert_eq!(bytes[at * dim..][..dim], twin);
                    assert_eq!(scales[2 * at], scale);
                    let back = from_bytes(&twin, scale);
                    assert!(row.iter().zip(&back).all(|(x, y)| (x - y).abs() <= scale));
                    let written = scales.iter().filter(|scale| !scale.is_nan()).count();
                    let before = slots.k.chunks(dim).filter(|row| !row[0].is_nan()).count();
                    assert_eq!(written, 2 * before + 4, "two heads' K and V, and no others");
                }
            }
        }
    }
}
