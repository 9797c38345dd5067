//! Products of matrices, losses and caches against their f64 twins, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests that report their errors"
)]

#[expect(dead_code, reason = "the layers in it serve the influence tests")]
mod twin;

use half::{bf16, f16};
use moa_kernels::{
    Cache, CacheSlots, CudaError, Gpu, HeadShape, Losses, Matmul, MatmulShape, RequestSlots,
};
use moa_mask::{HeadMask, RingLayout};
use moa_reference::compare::{Tolerance, compare};
use moa_reference::cross_entropy;
use moa_reference::kv_commit::kv_commit;
use moa_reference::matmul::matmul;
use twin::{Random, Value};

fn gpu() -> Gpu {
    Gpu::open(0, None).unwrap()
}

fn wide<T: Value>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.get() as f32).collect()
}

fn products_of<T: Value>(gpu: &Gpu) {
    let products = Matmul::new(gpu).unwrap();
    let step = T::STEP;
    let mut worst = [0.0f64; 2];
    for (rows, inputs, outputs) in [
        (1, 64, 64),
        (5, 48, 96),
        (130, 576, 192),
        (64, 96, 101),
        (64, 101, 96),
        (7, 96, 100),
        (33, 40, 8),
        (257, 1536, 576),
    ] {
        let shape = MatmulShape {
            rows,
            inputs,
            outputs,
        };
        let mut random = Random((rows * inputs) as u64);
        let x: Vec<T> = random.values(rows * inputs, 1.0);
        let weight: Vec<T> = random.values(inputs * outputs, 1.0 / (inputs as f32).sqrt());
        let bias: Vec<T> = random.values(outputs, 1.0);
        let d_y: Vec<T> = random.values(rows * outputs, 1.0);
        let [on_x, on_weight, on_bias, on_d_y] =
            [&x, &weight, &bias, &d_y].map(|values| gpu.upload(values).unwrap());
        let weights: Vec<f64> = weight.iter().map(|x| x.get()).collect();
        let plain = matmul(&wide(&x), &weights, inputs, None);

        let mut y = gpu.upload(&vec![f32::NAN; rows * outputs]).unwrap();
        products
            .forward(gpu, shape, &on_x, &on_weight, None, &mut y, false)
            .unwrap();
        let name = format!("{shape:?}");
        let exact = Tolerance::new(2e-5, 2e-6);
        let actual = gpu.download(&y).unwrap();
        worst[0] = worst[0].max(compare(&actual, &plain, exact).assert(&name));
        products
            .forward(gpu, shape, &on_x, &on_weight, None, &mut y, true)
            .unwrap();
        let twice: Vec<f64> = plain.iter().map(|y| 2.0 * y).collect();
        compare(&gpu.download(&y).unwrap(), &twice, exact).assert(&name);

        let biased = matmul(&wide(&x), &weights, inputs, Some(&wide(&bias)));
        let mut y = gpu.upload(&vec![T::of(f32::NAN); rows * outputs]).unwrap();
        products
            .forward(gpu, shape, &on_x, &on_weight, Some(&on_bias), &mut y, false)
            .unwrap();
        let rounded = Tolerance::new(2e-5, 1.01 * step + 1e-5);
        let actual = wide(&gpu.download(&y).unwrap());
        worst[1] = worst[1].max(compare(&actual, &biased, rounded).assert(&name));
        assert!(
            !compare(&actual, &plain, rounded).passed(),
            "the bias is there"
        );

        // d_y W is the product with the transposed matrix.
        let transposed: Vec<f64> = (0..inputs * outputs)
            .map(|i| weights[i % outputs * inputs + i / outputs])
            .collect();
        let expected = matmul(&wide(&d_y), &transposed, outputs, None);
        let mut d_x = gpu.upload(&vec![f32::NAN; rows * inputs]).unwrap();
        products
            .backward(gpu, shape, &on_d_y, &on_weight, &mut d_x, false)
            .unwrap();
        let wider = Tolerance::new(1e-4, 2e-6);
        compare(&gpu.download(&d_x).unwrap(), &expected, wider).assert(&name);
        let mut d_x = gpu.upload(&vec![T::of(f32::NAN); rows * inputs]).unwrap();
        products
            .backward(gpu, shape, &on_d_y, &on_weight, &mut d_x, false)
            .unwrap();
        let rounded = Tolerance::new(1e-4, 1.01 * step + 1e-5);
        let mut actual = wide(&gpu.download(&d_x).unwrap());
        compare(&actual, &expected, rounded).assert(&name);
        actual[0] += 0.1;
        assert!(!compare(&actual, &expected, rounded).passed());
    }
    println!(
        "products: largest errors {:.2e} (f32), {:.2e} (16-bit)",
        worst[0], worst[1]
    );
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn products_are_their_twins() {
    products_of::<bf16>(&gpu());
    products_of::<f16>(&gpu());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_bias_goes_with_16_bits_alone() {
    let gpu = gpu();
    let products = Matmul::new(&gpu).unwrap();
    let shape = MatmulShape {
        rows: 1,
        inputs: 8,
        outputs: 8,
    };
    let (x, w) = (
        gpu.zeros::<bf16>(8).unwrap(),
        gpu.zeros::<bf16>(64).unwrap(),
    );
    let mut y = gpu.zeros::<f32>(8).unwrap();
    let refused = products.forward(&gpu, shape, &x, &w, Some(&x), &mut y, false);
    assert!(matches!(refused, Err(CudaError::Shape { .. })));
}

fn losses_of<T: Value>(gpu: &Gpu) {
    let kernels = Losses::<T>::new(gpu).unwrap();
    let step = T::STEP;
    for (rows, vocab) in [(1, 1), (2, 3), (5, 320), (3, 49_152), (2, 128_256)] {
        let of = |seed: f32| -> Vec<f32> {
            (0..rows * vocab)
                .map(|i| (i as f32 * seed).sin() * 12.0)
                .collect()
        };
        let (student, teacher) = (of(0.7), of(0.71));
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % vocab) as u32).collect();
        let mean = 1.0 / rows as f64;
        let on_student = gpu.upload(&student).unwrap();
        let fresh = || {
            (
                gpu.upload(&vec![f64::NAN; rows]).unwrap(),
                gpu.upload(&vec![T::of(f32::NAN); student.len()]).unwrap(),
            )
        };
        // Gradients at 4096 times their size: f16's smallest values lie far below then.
        let scale = 4096.0 * mean as f32;
        let tolerance = Tolerance::new(4096.0 * 5e-7 * mean, 1.01 * step + 1e-5);
        let larger =
            |gradient: Vec<f64>| -> Vec<f64> { gradient.iter().map(|g| g * 4096.0).collect() };
        let (mut losses, mut gradient) = fresh();
        let on_targets = gpu.upload(&targets).unwrap();
        kernels
            .cross_entropy(
                gpu,
                &on_student,
                &on_targets,
                scale,
                &mut losses,
                &mut gradient,
            )
            .unwrap();
        let (loss, expected) = cross_entropy::cross_entropy(&student, &targets);
        let actual = gpu.download(&losses).unwrap().iter().sum::<f64>() * mean;
        assert!(
            (actual - loss).abs() < 2e-6 * (1.0 + loss),
            "{actual} {loss}"
        );
        let mut actual = wide(&gpu.download(&gradient).unwrap());
        let expected = larger(expected);
        let error = compare(&actual, &expected, tolerance).assert("cross entropy");
        println!(
            "cross entropy {rows} x {vocab}: largest error {:.2e} of 1",
            error / 4096.0
        );
        actual[0] += 20.0;
        assert!(!compare(&actual, &expected, tolerance).passed());

        let (mut losses, mut gradient) = fresh();
        let on_teacher = gpu.upload(&teacher).unwrap();
        kernels
            .kl_divergence(
                gpu,
                &on_teacher,
                &on_student,
                scale,
                &mut losses,
                &mut gradient,
            )
            .unwrap();
        let (loss, expected) = cross_entropy::kl_divergence(&teacher, &student, rows);
        let actual = gpu.download(&losses).unwrap().iter().sum::<f64>() * mean;
        assert!(
            (actual - loss).abs() < 4e-6 * (1.0 + loss),
            "{actual} {loss}"
        );
        let actual = wide(&gpu.download(&gradient).unwrap());
        compare(&actual, &larger(expected), tolerance).assert("kl");

        // Equal distributions have no divergence, and no gradient.
        let (mut losses, mut gradient) = fresh();
        kernels
            .kl_divergence(
                gpu,
                &on_student,
                &on_student,
                scale,
                &mut losses,
                &mut gradient,
            )
            .unwrap();
        assert!(
            gpu.download(&losses)
                .unwrap()
                .iter()
                .all(|loss| *loss == 0.0)
        );
        assert!(
            gpu.download(&gradient)
                .unwrap()
                .iter()
                .all(|d| d.get() == 0.0)
        );
    }
    // A token ruled out by both.
    let row = gpu.upload(&[0.0, f32::NEG_INFINITY, 1.0]).unwrap();
    let mut losses = gpu.zeros::<f64>(1).unwrap();
    let mut gradient = gpu.zeros::<T>(3).unwrap();
    kernels
        .kl_divergence(gpu, &row, &row, 1.0, &mut losses, &mut gradient)
        .unwrap();
    assert_eq!(gpu.download(&losses).unwrap(), [0.0]);
    // NaN shows.
    let row = gpu.upload(&[0.0, f32::NAN, 1.0]).unwrap();
    let target = gpu.upload(&[0u32]).unwrap();
    kernels
        .cross_entropy(gpu, &row, &target, 1.0, &mut losses, &mut gradient)
        .unwrap();
    assert!(gpu.download(&losses).unwrap()[0].is_nan());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn losses_are_their_twins() {
    losses_of::<bf16>(&gpu());
    losses_of::<f16>(&gpu());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn keys_go_to_their_slots_and_come_back() {
    let gpu = gpu();
    let (dim, context, slack) = (16usize, 300u32, 4);
    let masks = [
        HeadMask { sink: 4, window: 9 },
        HeadMask::DENSE,
        HeadMask {
            sink: 0,
            window: 50,
        },
    ];
    let mut first = 0;
    let heads: Vec<_> = masks
        .iter()
        .map(|&mask| {
            let layout = RingLayout::new(mask, context, slack);
            first += layout.slots();
            (mask, layout, first - layout.slots())
        })
        .collect();
    let shape = HeadShape {
        heads: masks.len() as u32,
        kv_heads: masks.len() as u32,
        head_dim: dim as u32,
    };
    let request = RequestSlots {
        heads: heads.clone(),
    };
    let slots = CacheSlots::new(&gpu, shape, &[request], first as usize).unwrap();
    let cache = Cache::<bf16>::new(&gpu, slots).unwrap();
    let width = masks.len() * dim;
    let all: Vec<bf16> = Random(3).values(context as usize * width, 1.0);
    let negative: Vec<bf16> = all.iter().map(|x| -*x).collect();
    let poison = vec![bf16::NAN; first as usize * dim];
    let (mut k_slots, mut v_slots) = (gpu.upload(&poison).unwrap(), gpu.upload(&poison).unwrap());
    let mut expected = poison;
    let mut start = 0u32;
    for len in [3u32, 1, 90, 1, 1, 64, 17] {
        let rows = start as usize * width..(start + len) as usize * width;
        let k = gpu.upload(&all[rows.clone()]).unwrap();
        let v = gpu.upload(&negative[rows.clone()]).unwrap();
        // Back by position, before the run enters.
        let end = (start + len) as usize;
        let fresh = || gpu.upload(&vec![bf16::NAN; end * width]).unwrap();
        let (mut k_out, mut v_out) = (fresh(), fresh());
        cache
            .linear(
                &gpu,
                (&k, &v),
                start,
                (&k_slots, &v_slots),
                (&mut k_out, &mut v_out),
            )
            .unwrap();
        let (k_out, v_out) = (gpu.download(&k_out).unwrap(), gpu.download(&v_out).unwrap());
        for p in 0..end {
            for (head, mask) in masks.iter().enumerate() {
                let seen = p >= start as usize || mask.attends(start, p as u32);
                let at = p * width + head * dim;
                for channel in at..at + dim {
                    let value = if seen { all[channel] } else { bf16::ZERO };
                    assert_eq!(k_out[channel], value, "position {p} of head {head}");
                    assert_eq!(v_out[channel], -value);
                }
            }
        }
        let starts = gpu.upload(&[start]).unwrap();
        cache
            .commit(&gpu, (&k, &v), &starts, (&mut k_slots, &mut v_slots))
            .unwrap();
        for (head, (_, layout, first)) in heads.iter().enumerate() {
            let rows: Vec<bf16> = all[rows.clone()]
                .chunks(dim)
                .skip(head)
                .step_by(masks.len())
                .flatten()
                .copied()
                .collect();
            let slots = &mut expected[*first as usize * dim..][..layout.slots() as usize * dim];
            kv_commit(slots, &rows, dim, *layout, start);
        }
        start += len;
        let bits = |values: Vec<bf16>| -> Vec<u16> { values.iter().map(|x| x.to_bits()).collect() };
        let actual = bits(gpu.download(&k_slots).unwrap());
        assert_eq!(actual, bits(expected.clone()), "after {start} tokens");
        let negated = bits(gpu.download(&v_slots).unwrap());
        for (k, v) in actual.iter().zip(negated) {
            assert!(bf16::from_bits(*k).is_nan() || *k ^ 0x8000 == v);
        }
    }
}
