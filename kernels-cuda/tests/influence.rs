//! The influence kernel against its f64 definition, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests that report their errors"
)]

#[expect(dead_code, reason = "joint curves are not rounded to 16 bits")]
mod twin;

use half::{bf16, f16};
use moa_kernels::{CudaError, Gpu, Influence, InfluenceInputs, InfluenceShape, Layout, RowDots};
use moa_mask::HeadMask;
use moa_reference::compare::{Comparison, Tolerance, compare};
use twin::{Layer, Value, shape};

const WORKSPACE: usize = 48 << 20;

fn gpu() -> Gpu {
    Gpu::open(0, None).unwrap()
}

/// The kernel's curves with the layer's D; its workspace is full of NaN before the launch.
fn on_device<T: Value>(gpu: &Gpu, layer: &Layer<T>, workspace_bytes: usize) -> Vec<f64> {
    let row_dot = gpu.upload(&layer.padded_row_dot()).unwrap();
    curves_with(gpu, layer, workspace_bytes, RowDots::Given(&row_dot)).unwrap()
}

fn curves_with<T: Value>(
    gpu: &Gpu,
    layer: &Layer<T>,
    workspace_bytes: usize,
    dots: RowDots<'_>,
) -> moa_kernels::Result<Vec<f64>> {
    let mut kernel = Influence::new::<T>(gpu, layer.shape, workspace_bytes).unwrap();
    let poison = vec![f32::NAN; kernel.workspace_mut().len()];
    gpu.write(kernel.workspace_mut(), 0, &poison).unwrap();
    let mut curves = gpu.zeros::<f64>(layer.shape.curve_values()).unwrap();
    let upload = |tensor: &[T], heads| gpu.upload(&layer.laid_out(tensor, heads)).unwrap();
    let (heads, kv_heads) = (layer.shape.heads, layer.shape.kv_heads);
    let (q, k) = (upload(&layer.q, heads), upload(&layer.k, kv_heads));
    let (v, grad_out) = (upload(&layer.v, kv_heads), upload(&layer.grad_out, heads));
    let inputs = InfluenceInputs {
        q: &q,
        k: &k,
        v: &v,
        grad_out: &grad_out,
        softmax_scale: layer.softmax_scale,
    };
    kernel.add(gpu, &inputs, dots, &mut curves)?;
    gpu.download(&curves)
}

/// Each phi's curves against the twin's; an error is measured in parts of the largest value of |phi|'s curves, since signed sums cancel.
fn check(
    shape: InfluenceShape,
    actual: &[f64],
    expected: &[f64],
    part: f64,
) -> [(f64, Comparison); 3] {
    let bins = shape.bins() as usize;
    let of = |curves: &[f64], phi: usize| -> Vec<f64> {
        curves
            .chunks(bins)
            .skip(phi)
            .step_by(3)
            .flatten()
            .copied()
            .collect()
    };
    [0, 1, 2].map(|phi| {
        let largest = of(expected, phi.max(1)).iter().copied().fold(0.0, f64::max);
        // Where nothing is hidden from any row every effect is rounding, squares still more so.
        let rows = f64::from(shape.len * shape.gqa_group());
        let floor = if phi == 2 { 1e-10 } else { 2e-6 } * rows;
        let tolerance = Tolerance::new(part * largest + floor, 0.0);
        let result = compare(&of(actual, phi), &of(expected, phi), tolerance);
        (result.max_error / largest.max(floor), result)
    })
}

fn assert_parity<T: Value>(gpu: &Gpu, layer: &Layer<T>, workspace_bytes: usize, part: f64) {
    let actual = on_device(gpu, layer, workspace_bytes);
    let results = check(layer.shape, &actual, &layer.curves(0), part);
    for (phi, (relative, result)) in results.iter().enumerate() {
        println!(
            "{:?} phi {phi}: largest error {relative:.2e} of the largest value",
            layer.shape
        );
        let _ = result.assert(&format!("{:?} phi {phi}", layer.shape));
    }
}

/// Largest error seen on an H100: see docs/measurements.md.
const PART: f64 = 2e-5;

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn curves_agree_with_the_definition() {
    let gpu = gpu();
    let cases = [
        (1, 1, 1, 64, 64),
        (3, 1, 5, 64, 0),
        (2, 2, 63, 128, 64),
        (4, 1, 64, 128, 0),
        (7, 1, 65, 64, 64),
        (8, 1, 200, 128, 64),
        (6, 2, 321, 16, 0),
        (6, 2, 321, 32, 128),
        (4, 4, 1000, 96, 64),
        (8, 2, 1024, 128, 192),
        (5, 5, 777, 128, 0),
        (1, 1, 100, 80, 256),
        (9, 3, 1500, 64, 64),
    ];
    for (seed, (heads, kv_heads, len, head_dim, sink)) in cases.into_iter().enumerate() {
        let shape = shape(heads, kv_heads, len, head_dim, sink);
        assert_parity(
            &gpu,
            &Layer::<bf16>::random(shape, 1.0, seed as u64),
            WORKSPACE,
            PART,
        );
        assert_parity(
            &gpu,
            &Layer::<f16>::random(shape, 2.0, seed as u64 + 100),
            WORKSPACE,
            PART,
        );
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn logits_of_eighty_and_a_plan_that_is_not_dense() {
    let gpu = gpu();
    let mut layer = Layer::<bf16>::random(shape(4, 2, 900, 128, 64), 25.0, 7);
    assert_parity(&gpu, &layer, WORKSPACE, PART);
    // D of some other output than the dense one.
    for (row, dot) in layer.row_dot.iter_mut().enumerate() {
        *dot += (row % 7) as f32 * 0.1 - 0.3;
    }
    assert_parity(&gpu, &layer, WORKSPACE, PART);
}

/// Masks that hide what spans of the curves hide: the walk has their D itself.
#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn masks_on_the_curve_need_no_other_pass() {
    let gpu = gpu();
    let of = |window| HeadMask { sink: 64, window };
    for (seed, (shape, masks)) in [
        (shape(4, 2, 900, 128, 64), [HeadMask::DENSE; 2]),
        (shape(4, 2, 900, 128, 64), [of(64), of(448)]),
        (shape(6, 2, 321, 64, 64), [of(192), HeadMask::DENSE]),
        (
            shape(2, 2, 450, 64, 0),
            [64, 256].map(|window| HeadMask { sink: 0, window }),
        ),
        (
            shape(2, 2, 450, 16, 192),
            [64, 128].map(|window| HeadMask { sink: 192, window }),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut layer = Layer::<bf16>::random(shape, 2.0, seed as u64);
        layer.fill_row_dot_under(&masks);
        for workspace in [WORKSPACE, 100_000] {
            let poison = vec![f32::NAN; shape.row_values()];
            let mut row_dot = gpu.upload(&poison).unwrap();
            let dots = RowDots::OnCurve {
                masks: &masks,
                row_dot: &mut row_dot,
            };
            let curves = curves_with(&gpu, &layer, workspace, dots).unwrap();
            for (phi, (relative, result)) in check(shape, &curves, &layer.curves(0), PART)
                .iter()
                .enumerate()
            {
                println!("{shape:?} {masks:?} phi {phi}: {relative:.2e} of the largest value");
                let _ = result.assert(&format!("{shape:?} {masks:?} phi {phi}"));
            }
            let mut expected = layer.padded_row_dot();
            for (row, dot) in expected.iter_mut().enumerate() {
                if row % shape.rows() as usize >= shape.len as usize {
                    *dot = 0.0;
                }
            }
            let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
            let actual = gpu.download(&row_dot).unwrap();
            let tolerance = Tolerance::of_largest(1e-5, &expected);
            let error = compare(&actual, &expected, tolerance).assert("D");
            println!("{shape:?} {masks:?}: D differs by {error:.2e}");
            // Staying costs nothing, to the last bit.
            let bins = shape.bins() as usize;
            for (kv_head, &mask) in masks.iter().enumerate() {
                let own = shape.bin_of(mask).unwrap() as usize;
                assert_eq!(curves[(kv_head * 3 + 1) * bins + own], 0.0);
                assert!(own == 0 || curves[(kv_head * 3 + 1) * bins + own - 1] > 0.0);
            }
        }
    }
    let shape = shape(2, 1, 300, 64, 64);
    let layer = Layer::<bf16>::random(shape, 1.0, 3);
    let mut row_dot = gpu.zeros(shape.row_values()).unwrap();
    let dots = RowDots::OnCurve {
        masks: &[of(65)],
        row_dot: &mut row_dot,
    };
    let refused = curves_with(&gpu, &layer, WORKSPACE, dots).unwrap_err();
    assert!(matches!(refused, CudaError::Shape { .. }), "{refused}");
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn one_dominant_far_key() {
    // Key 70 outweighs all others together by e^30 and more in every row that sees it: 1 - m would be zero in f32 for every window
    // that reaches it, and before that the rest must not underflow.
    let gpu = gpu();
    let mut layer = Layer::<bf16>::random(shape(2, 1, 1200, 64, 64), 0.5, 11);
    let dim = layer.shape.head_dim as usize;
    let direction: Vec<f32> = (0..dim)
        .map(|c| if c % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    for row in layer.q.chunks_mut(dim) {
        for (x, d) in row.iter_mut().zip(&direction) {
            *x = bf16::of((x.get() as f32) + d);
        }
    }
    for (x, d) in layer.k[70 * dim..71 * dim].iter_mut().zip(&direction) {
        *x = bf16::of(5.0 * d);
    }
    layer.fill_row_dot();
    assert_parity(&gpu, &layer, WORKSPACE, PART);
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn the_same_bytes_twice_and_any_workspace() {
    let gpu = gpu();
    let layer = Layer::<bf16>::random(shape(12, 4, 1111, 128, 64), 1.0, 3);
    let first = on_device(&gpu, &layer, WORKSPACE);
    let second = on_device(&gpu, &layer, WORKSPACE);
    assert!(
        first
            .iter()
            .zip(&second)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
    for workspace in [16, 20_000, 100_000] {
        assert_parity(&gpu, &layer, workspace, PART);
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn the_comparison_sees_small_faults() {
    // Negative controls: a window one key too wide or too narrow, one changed value, NaN.
    let gpu = gpu();
    let layer = Layer::<bf16>::random(shape(4, 2, 500, 64, 64), 1.0, 5);
    let actual = on_device(&gpu, &layer, WORKSPACE);
    let passed = |actual: &[f64], expected: &[f64]| {
        check(layer.shape, actual, expected, PART)
            .iter()
            .all(|(_, result)| result.passed())
    };
    let expected = layer.curves(0);
    assert!(passed(&actual, &expected));
    assert!(!passed(&actual, &layer.curves(1)));
    assert!(!passed(&actual, &layer.curves(-1)));
    let mut changed = layer.clone();
    changed.v[500] = bf16::of(changed.v[500].get() as f32 + 1.0);
    assert!(!passed(&on_device(&gpu, &changed, WORKSPACE), &expected));
    changed.v[500] = bf16::NAN;
    assert!(!passed(&on_device(&gpu, &changed, WORKSPACE), &expected));
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn long_rows() {
    let gpu = gpu();
    assert_parity(
        &gpu,
        &Layer::<bf16>::random(shape(2, 1, 8192, 128, 64), 1.0, 21),
        WORKSPACE,
        PART,
    );
}

#[test]
fn the_twin_here_is_the_shared_one() {
    // moa_reference's is written by definition and too slow for long rows; this one is compared with it.
    use moa_mask::{HeadMask, MaskGrid};
    use moa_reference::attention_prefill::AttentionShape;
    let layer = Layer::<bf16>::random(
        InfluenceShape {
            layout: Layout::TokensFirst,
            ..shape(4, 2, 150, 16, 64)
        },
        2.0,
        9,
    );
    let of = |tensor: &[bf16], heads| -> Vec<f32> {
        let laid_out = layer.laid_out(tensor, heads);
        laid_out.iter().map(|x| x.to_f32()).collect()
    };
    let expected = moa_reference::influence::influence(
        AttentionShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
        },
        &of(&layer.q, 4),
        &of(&layer.k, 2),
        &of(&layer.v, 2),
        &of(&layer.grad_out, 4),
        &[HeadMask::DENSE; 2],
        MaskGrid::new(64, 64).unwrap(),
    );
    let curves = layer.curves(0);
    let bins = layer.shape.bins() as usize;
    for (phi, expected) in [
        expected.joint_signed,
        expected.joint_abs,
        expected.joint_square,
    ]
    .iter()
    .enumerate()
    {
        let actual: Vec<f64> = curves
            .chunks(bins)
            .skip(phi)
            .step_by(3)
            .flatten()
            .copied()
            .collect();
        // D is rounded to f32.
        let _ = compare(&actual, expected, Tolerance::of_largest(1e-6, expected)).assert("twins");
    }
}
