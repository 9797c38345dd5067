//! Per-entry influence and row statistics against their f64 definition, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests that report their errors"
)]

#[expect(dead_code, reason = "joint curves have their own tests")]
mod twin;

use half::{bf16, f16};
use moa_kernels::{EntryInputs, EntryMaps, Gpu, InfluenceEntries, InfluenceShape, Layout};
use moa_mask::{HeadMask, MaskGrid};
use moa_reference::attention_prefill::{AttentionShape, attention_prefill};
use moa_reference::compare::{Comparison, Tolerance, compare};
use moa_reference::influence_entries::influence;
use twin::{Layer, Value, shape};

const DENSE: HeadMask = HeadMask::DENSE;
/// Part of the largest value that an error may be; the largest seen on an H100 stands in docs/measurements.md.
const PART: f64 = 2e-5;

struct Found {
    lse: Vec<f64>,
    row_dot: Vec<f64>,
    curves: Vec<f64>,
    abs: Vec<f64>,
    signed: Vec<f64>,
}

fn on_device<T: Value>(
    gpu: &Gpu,
    layer: &Layer<T>,
    masks: &[HeadMask],
    workspace_bytes: usize,
) -> Found {
    let shape = layer.shape;
    let mut kernel = InfluenceEntries::new::<T>(gpu, shape, masks, workspace_bytes).unwrap();
    let poison = vec![f32::NAN; kernel.workspace_mut().len()];
    gpu.write(kernel.workspace_mut(), 0, &poison).unwrap();
    let upload = |tensor: &[T], heads| gpu.upload(&layer.laid_out(tensor, heads)).unwrap();
    let (q, k) = (
        upload(&layer.q, shape.heads),
        upload(&layer.k, shape.kv_heads),
    );
    let (v, grad_out) = (
        upload(&layer.v, shape.kv_heads),
        upload(&layer.grad_out, shape.heads),
    );
    let inputs = EntryInputs {
        q: &q,
        k: &k,
        v: &v,
        grad_out: &grad_out,
        softmax_scale: layer.softmax_scale,
    };
    let statistics = kernel.rows(gpu, &inputs).unwrap();
    let bins = shape.bins() as usize;
    let cells = shape.heads as usize * bins * bins;
    let mut maps = EntryMaps {
        abs: gpu.zeros(cells).unwrap(),
        signed: gpu.zeros(cells).unwrap(),
    };
    let mut shown = gpu.zeros::<f64>(shape.kv_heads as usize * bins).unwrap();
    kernel
        .add(gpu, &inputs, &statistics, &mut shown, Some(&mut maps))
        .unwrap();
    let mut curves = gpu.download(&shown).unwrap();
    for curve in curves.chunks_mut(bins) {
        let mut hidden = 0.0;
        for bin in curve.iter_mut().rev() {
            (*bin, hidden) = (hidden, hidden + *bin);
        }
    }
    let (len, rows) = (shape.len as usize, shape.rows() as usize);
    let live = |values: Vec<f32>| -> Vec<f64> {
        // As the twins have it: [len, heads].
        (0..len * shape.heads as usize)
            .map(|i| f64::from(values[i % shape.heads as usize * rows + i / shape.heads as usize]))
            .collect()
    };
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
    Found {
        lse: live(gpu.download(&statistics.lse).unwrap()),
        row_dot: live(gpu.download(&statistics.row_dot).unwrap()),
        curves,
        abs: wide(gpu.download(&maps.abs).unwrap()),
        signed: wide(gpu.download(&maps.signed).unwrap()),
    }
}

fn expected<T: Value>(layer: &Layer<T>, masks: &[HeadMask]) -> Found {
    let shape = layer.shape;
    let tokens_first = Layer {
        shape: InfluenceShape {
            layout: Layout::TokensFirst,
            ..shape
        },
        ..layer.clone()
    };
    let of = |tensor: &[T], heads| -> Vec<f32> {
        let tensor = tokens_first.laid_out(tensor, heads);
        tensor.iter().map(|x| x.get() as f32).collect()
    };
    let twin_shape = AttentionShape {
        heads: shape.heads as usize,
        kv_heads: shape.kv_heads as usize,
        head_dim: shape.head_dim as usize,
    };
    let (q, k) = (of(&layer.q, shape.heads), of(&layer.k, shape.kv_heads));
    let (v, grad) = (
        of(&layer.v, shape.kv_heads),
        of(&layer.grad_out, shape.heads),
    );
    let grid = MaskGrid::new(shape.sink, 64).unwrap();
    let found = influence(twin_shape, &q, &k, &v, &grad, masks, grid);
    let (abs, signed) = found.blocks(shape.heads as usize, 64);
    let attended = attention_prefill(twin_shape, &q, &k, &v, masks, 0);
    let dim = shape.head_dim as usize;
    let row_dot = attended
        .o
        .chunks(dim)
        .zip(grad.chunks(dim))
        .map(|(o, g)| o.iter().zip(g).map(|(o, g)| o * f64::from(*g)).sum())
        .collect();
    Found {
        lse: attended.lse,
        row_dot,
        curves: found.per_entry,
        abs,
        signed,
    }
}

fn results(actual: &Found, expected: &Found) -> [(&'static str, f64, Comparison); 5] {
    let part = |name, actual: &[f64], expected: &[f64], scale: &[f64]| {
        let tolerance = Tolerance::new(Tolerance::of_largest(PART, scale).abs + 1e-7, 0.0);
        let result = compare(actual, expected, tolerance);
        let largest = Tolerance::of_largest(1.0, scale).abs;
        (name, result.max_error / largest.max(1e-2), result)
    };
    [
        part("lse", &actual.lse, &expected.lse, &expected.lse),
        part("D", &actual.row_dot, &expected.row_dot, &expected.row_dot),
        part(
            "per entry",
            &actual.curves,
            &expected.curves,
            &expected.curves,
        ),
        part("blocks, abs", &actual.abs, &expected.abs, &expected.abs),
        part(
            "blocks, signed",
            &actual.signed,
            &expected.signed,
            &expected.abs,
        ),
    ]
}

fn check<T: Value>(gpu: &Gpu, layer: &Layer<T>, masks: &[HeadMask], workspace_bytes: usize) {
    let found = on_device(gpu, layer, masks, workspace_bytes);
    for (name, part, result) in results(&found, &expected(layer, masks)) {
        println!("{:?} {name}: {part:.2e} of the largest value", layer.shape);
        let _ = result.assert(&format!("{:?} {masks:?} {name}", layer.shape));
    }
}

const fn mask(sink: u32, window: u32) -> HeadMask {
    HeadMask { sink, window }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn entries_agree_with_the_definition() {
    let gpu = Gpu::open(0, None).unwrap();
    let cases = [
        (shape(1, 1, 1, 64, 64), vec![DENSE]),
        (shape(3, 1, 5, 64, 0), vec![mask(2, 2)]),
        (shape(2, 2, 63, 128, 64), vec![DENSE, mask(0, 10)]),
        (shape(7, 1, 65, 64, 64), vec![DENSE]),
        (shape(8, 2, 200, 128, 64), vec![DENSE, mask(64, 64)]),
        (shape(6, 2, 321, 16, 0), vec![mask(16, 100), DENSE]),
        (
            shape(4, 4, 260, 96, 128),
            vec![DENSE, mask(0, 1), mask(64, 128), mask(30, 33)],
        ),
        (shape(2, 1, 400, 64, 64), vec![DENSE]),
    ];
    for (seed, (shape, masks)) in cases.into_iter().enumerate() {
        check(
            &gpu,
            &Layer::<bf16>::random(shape, 1.0, seed as u64),
            &masks,
            48 << 20,
        );
        check(
            &gpu,
            &Layer::<f16>::random(shape, 3.0, seed as u64 + 50),
            &masks,
            48 << 20,
        );
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn one_dominant_far_key() {
    // Key 70 outweighs all others together by e^20: its own cost comes from the others' sums alone, and 1 - A would be zero in f32.
    let gpu = Gpu::open(0, None).unwrap();
    let mut layer = Layer::<bf16>::random(shape(2, 1, 300, 64, 64), 0.5, 11);
    let dim = layer.shape.head_dim as usize;
    let direction: Vec<f32> = (0..dim)
        .map(|c| if c % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    for row in layer.q.chunks_mut(dim) {
        for (x, d) in row.iter_mut().zip(&direction) {
            *x = bf16::of(x.get() as f32 + d);
        }
    }
    for (x, d) in layer.k[70 * dim..71 * dim].iter_mut().zip(&direction) {
        *x = bf16::of(2.5 * d);
    }
    for masks in [[DENSE], [mask(64, 100)]] {
        check(&gpu, &layer, &masks, 48 << 20);
    }
    let strong = expected(&layer, &[DENSE]);
    assert!(
        strong.curves[0] > 1.0,
        "the rows matter: {}",
        strong.curves[0]
    );
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn the_same_bytes_twice_and_any_workspace() {
    let gpu = Gpu::open(0, None).unwrap();
    let layer = Layer::<bf16>::random(shape(6, 2, 333, 64, 64), 1.0, 3);
    let masks = [DENSE, mask(64, 90)];
    let bits = |found: &Found| -> Vec<u64> { found.curves.iter().map(|x| x.to_bits()).collect() };
    let first = on_device(&gpu, &layer, &masks, 48 << 20);
    let second = on_device(&gpu, &layer, &masks, 48 << 20);
    assert_eq!(bits(&first), bits(&second));
    for workspace in [16, 5000, 20_000] {
        check(&gpu, &layer, &masks, workspace);
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn the_comparison_sees_small_faults() {
    let gpu = Gpu::open(0, None).unwrap();
    let layer = Layer::<bf16>::random(shape(2, 1, 200, 64, 64), 1.0, 5);
    let found = on_device(&gpu, &layer, &[mask(64, 50)], 48 << 20);
    let passes = |masks: &[HeadMask], layer: &Layer<bf16>| {
        results(&found, &expected(layer, masks)).map(|(_, _, result)| result.passed())
    };
    assert_eq!(passes(&[mask(64, 50)], &layer), [true; 5]);
    for wrong in [mask(64, 49), mask(64, 51), mask(63, 50), mask(65, 50)] {
        assert_eq!(passes(&[wrong], &layer), [false; 5], "{wrong:?}");
    }
    let mut changed = layer.clone();
    changed.v[100 * 64] = bf16::of(changed.v[100 * 64].get() as f32 + 8.0);
    assert!(!passes(&[mask(64, 50)], &changed)[2]);
    // Another grid moves the entries that count.
    let other = Layer {
        shape: InfluenceShape {
            sink: 0,
            ..layer.shape
        },
        ..layer.clone()
    };
    assert!(!passes(&[mask(64, 50)], &other)[2]);
}
