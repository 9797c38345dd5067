//! Row kernels against their f64 twins, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests that report their errors"
)]

#[expect(dead_code, reason = "the layers in it serve the influence tests")]
mod twin;

use half::{bf16, f16};
use moa_kernels::{Buffer, Gpu, Rows, Turn};
use moa_reference::compare::{Tolerance, compare};
use moa_reference::embedding::embedding;
use moa_reference::rms_norm::{rms_norm, rms_norm_backward};
use moa_reference::rope::rope;
use moa_reference::swiglu::{swiglu, swiglu_backward};
use twin::{Random, Value};

fn gpu() -> Gpu {
    Gpu::open(0, None).unwrap()
}

fn noise(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.normal() * scale).collect()
}

/// Values that the 16-bit type has, as f32.
fn rounded<T: Value>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| T::of(x).get() as f32).collect()
}

fn upload<T: Value>(gpu: &Gpu, values: &[f32]) -> Buffer<T> {
    let values: Vec<T> = values.iter().map(|&x| T::of(x)).collect();
    gpu.upload(&values).unwrap()
}

fn poisoned<T: Value>(gpu: &Gpu, len: usize) -> Buffer<T> {
    gpu.upload(&vec![T::of(f32::NAN); len]).unwrap()
}

fn poisoned_f32(gpu: &Gpu, len: usize) -> Buffer<f32> {
    gpu.upload(&vec![f32::NAN; len]).unwrap()
}

fn values<T: Value>(gpu: &Gpu, buffer: &Buffer<T>) -> Vec<f64> {
    let values = gpu.download(buffer).unwrap();
    values.into_iter().map(T::get).collect()
}

fn rounding<T: Value>() -> Tolerance {
    Tolerance::new(1e-6, 1.01 * T::STEP + 2e-6)
}

/// Compares, and sees to it that one changed element is noticed.
fn same(name: &str, actual: &[f64], expected: &[f64], tolerance: Tolerance) {
    let error = compare(actual, expected, tolerance).assert(name);
    println!("{name}: largest error {error:.2e}");
    let mut spoiled = actual.to_vec();
    let at = spoiled.len() / 2;
    spoiled[at] += 4.0 * (tolerance.abs + tolerance.rel * expected[at].abs()) + 1e-5;
    assert!(!compare(&spoiled, expected, tolerance).passed(), "{name}");
}

fn norms<T: Value>(gpu: &Gpu) {
    let kernels = Rows::<T>::new(gpu).unwrap();
    for (rows, dim) in [(1, 8), (3, 48), (5, 576), (2, 4096), (4, 101), (300, 64)] {
        let x = noise(dim as u64, rows * dim, 3.0);
        let weight = noise(1, dim, 1.0);
        let d_y = noise(2, rows * dim, 0.5);
        let (on_x, on_weight) = (gpu.upload(&x).unwrap(), gpu.upload(&weight).unwrap());
        let mut y = poisoned::<T>(gpu, x.len());
        kernels
            .rms_norm(gpu, &on_x, &on_weight, 1e-5, &mut y)
            .unwrap();
        let name = format!("rms_norm {rows} x {dim}");
        let expected = rms_norm(&x, &weight, 1e-5);
        same(&name, &values(gpu, &y), &expected, rounding::<T>());

        let on_d_y = gpu.upload(&d_y).unwrap();
        let expected = rms_norm_backward(&x, &weight, &d_y, 1e-5);
        let tolerance = Tolerance::new(2e-6, 2e-6);
        let mut d_x = poisoned_f32(gpu, x.len());
        kernels
            .rms_norm_backward(gpu, &on_x, &on_weight, &on_d_y, 1e-5, &mut d_x, false)
            .unwrap();
        let of = |buffer| -> Vec<f64> {
            let values: Vec<f32> = gpu.download(buffer).unwrap();
            values.into_iter().map(f64::from).collect()
        };
        same(&name, &of(&d_x), &expected, tolerance);
        let addend = noise(3, x.len(), 2.0);
        let mut sum = gpu.upload(&addend).unwrap();
        kernels
            .rms_norm_backward(gpu, &on_x, &on_weight, &on_d_y, 1e-5, &mut sum, true)
            .unwrap();
        let expected: Vec<f64> = expected
            .iter()
            .zip(&addend)
            .map(|(d, a)| d + f64::from(*a))
            .collect();
        same(&name, &of(&sum), &expected, tolerance);
    }
}

fn activations<T: Value>(gpu: &Gpu) {
    let kernels = Rows::<T>::new(gpu).unwrap();
    for count in [1, 7, 8, 2048, 5003] {
        let mut gate = rounded::<T>(&noise(4, count, 4.0));
        gate[0] = T::of(-300.0).get() as f32;
        let up = rounded::<T>(&noise(5, count, 2.0));
        let d_y = rounded::<T>(&noise(6, count, 1.0));
        let (mut on_gate, mut on_up) = (upload::<T>(gpu, &gate), upload::<T>(gpu, &up));
        let mut y = poisoned::<T>(gpu, count);
        kernels.swiglu(gpu, &on_gate, &on_up, &mut y).unwrap();
        let name = format!("swiglu {count}");
        let expected = swiglu(&gate, &up);
        same(&name, &values(gpu, &y), &expected, rounding::<T>());
        kernels
            .swiglu_backward(gpu, &mut on_gate, &mut on_up, &upload::<T>(gpu, &d_y))
            .unwrap();
        let (d_gate, d_up) = swiglu_backward(&gate, &up, &d_y);
        // The slope of silu passes through zero near -1.28, where terms cancel.
        let tolerance = Tolerance::new(2e-5, rounding::<T>().rel);
        same(&name, &values(gpu, &on_gate), &d_gate, tolerance);
        same(&name, &values(gpu, &on_up), &d_up, tolerance);
    }
}

fn rotations<T: Value>(gpu: &Gpu) {
    let kernels = Rows::<T>::new(gpu).unwrap();
    for (positions, heads, head_dim) in [
        (vec![0], 1, 16),
        (vec![5, 6, 7], 3, 64),
        (vec![9000, 3], 5, 128),
    ] {
        let x = rounded::<T>(&noise(7, positions.len() * heads * head_dim, 2.0));
        let half = head_dim / 2;
        let inv_freq: Vec<f64> = (0..half)
            .map(|pair| 10_000f64.powf(-(pair as f64) / half as f64))
            .collect();
        let angles: Vec<f64> = positions
            .iter()
            .flat_map(|&p: &u32| inv_freq.iter().map(move |f| f64::from(p) * f))
            .collect();
        let cosines: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
        let sines: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
        let (cosines, sines) = (gpu.upload(&cosines).unwrap(), gpu.upload(&sines).unwrap());
        for (turn, backward) in [(Turn::Forward, false), (Turn::Backward, true)] {
            let mut on_x = upload::<T>(gpu, &x);
            kernels
                .rope(gpu, &mut on_x, heads, head_dim, (&cosines, &sines), turn)
                .unwrap();
            let expected = rope(&x, &positions, heads, &inv_freq, backward);
            let name = format!("rope {positions:?} {heads} x {head_dim} {turn:?}");
            same(&name, &values(gpu, &on_x), &expected, rounding::<T>());
        }
    }
}

fn tables<T: Value>(gpu: &Gpu) {
    let kernels = Rows::<T>::new(gpu).unwrap();
    for (rows, dim, ids) in [
        (4usize, 8usize, vec![3u32]),
        (100, 48, vec![99, 0, 7, 7]),
        (11, 101, vec![10, 2]),
    ] {
        let table = rounded::<T>(&noise(8, rows * dim, 1.0));
        let wide: Vec<f64> = table.iter().map(|&x| f64::from(x)).collect();
        let expected = embedding(&ids, &wide, dim);
        let (half, full) = (upload::<T>(gpu, &table), gpu.upload(&table).unwrap());
        let on_ids = gpu.upload(&ids).unwrap();
        let mut y = poisoned::<T>(gpu, expected.len());
        kernels
            .gather_half(gpu, &half, dim, &on_ids, &mut y)
            .unwrap();
        same("gather_half", &values(gpu, &y), &expected, Tolerance::EXACT);
        for widened in [false, true] {
            let mut y = poisoned_f32(gpu, expected.len());
            if widened {
                kernels
                    .gather_widen(gpu, &half, dim, &on_ids, &mut y)
                    .unwrap();
            } else {
                kernels
                    .gather_full(gpu, &full, dim, &on_ids, &mut y)
                    .unwrap();
            }
            let actual = gpu.download(&y).unwrap();
            compare(&actual, &expected, Tolerance::EXACT).assert("gather");
        }
        // Distinct rows back into a table of zeros.
        let own: Vec<u32> = vec![ids[0]];
        let mut back = gpu.zeros::<f32>(rows * dim).unwrap();
        let row: Vec<f32> = expected[..dim].iter().map(|&x| x as f32).collect();
        kernels
            .scatter(
                gpu,
                &gpu.upload(&row).unwrap(),
                dim,
                &gpu.upload(&own).unwrap(),
                &mut back,
            )
            .unwrap();
        let back = gpu.download(&back).unwrap();
        for (index, &value) in back.iter().enumerate() {
            let inside = index / dim == own[0] as usize;
            assert_eq!(value, if inside { row[index % dim] } else { 0.0 });
        }
        // A row that the table does not have.
        let outside = gpu.upload(&[rows as u32]).unwrap();
        let mut y = gpu.zeros::<f32>(dim).unwrap();
        kernels
            .gather_full(gpu, &full, dim, &outside, &mut y)
            .unwrap();
        assert!(gpu.download(&y).unwrap().iter().all(|x| x.is_nan()));
    }
    for count in [1, 9, 4096] {
        let x = noise(9, count, 100.0);
        let mut y = poisoned::<T>(gpu, count);
        kernels
            .narrow(gpu, &gpu.upload(&x).unwrap(), &mut y)
            .unwrap();
        let expected: Vec<f64> = x.iter().map(|&x| T::of(x).get()).collect();
        same("narrow", &values(gpu, &y), &expected, Tolerance::EXACT);
        let mut wide = poisoned_f32(gpu, count);
        kernels.widen(gpu, &y, &mut wide).unwrap();
        compare(&gpu.download(&wide).unwrap(), &expected, Tolerance::EXACT).assert("widen");
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn norms_are_their_twins() {
    norms::<bf16>(&gpu());
    norms::<f16>(&gpu());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn activations_are_their_twins() {
    activations::<bf16>(&gpu());
    activations::<f16>(&gpu());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn rotations_are_their_twins() {
    rotations::<bf16>(&gpu());
    rotations::<f16>(&gpu());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn rows_go_where_they_belong() {
    tables::<bf16>(&gpu());
    tables::<f16>(&gpu());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn wrong_sizes_are_refused() {
    let gpu = gpu();
    let kernels = Rows::<bf16>::new(&gpu).unwrap();
    let (x, w) = (gpu.zeros::<f32>(30).unwrap(), gpu.zeros::<f32>(8).unwrap());
    let mut y = gpu.zeros::<bf16>(30).unwrap();
    assert!(kernels.rms_norm(&gpu, &x, &w, 1e-5, &mut y).is_err());
    let angles = gpu.zeros::<f32>(12).unwrap();
    let mut q = gpu.zeros::<bf16>(24).unwrap();
    assert!(
        kernels
            .rope(&gpu, &mut q, 1, 24, (&angles, &angles), Turn::Forward)
            .is_err()
    );
}
