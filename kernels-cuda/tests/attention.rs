//! Masked attention and its gradients against their f64 twins, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests that report their errors"
)]

#[expect(dead_code, reason = "the layers in it serve the influence tests")]
mod twin;

use half::{bf16, f16};
use moa_kernels::{Attention, AttentionGradients, AttentionShape, Gpu, Layout};
use moa_mask::HeadMask;
use moa_reference::attention_backward::attention_backward;
use moa_reference::attention_prefill::{self, attention_prefill};
use moa_reference::compare::{Comparison, Tolerance, compare};
use twin::{Random, Value};

const DENSE: HeadMask = HeadMask::DENSE;

const fn mask(sink: u32, window: u32) -> HeadMask {
    HeadMask { sink, window }
}

struct Case {
    shape: AttentionShape,
    masks: Vec<HeadMask>,
    logits: f32,
}

/// (`heads`, `kv_heads`, `q_len`, `q_start`, `head_dim`), tokens first as the twins have it.
fn case(sizes: (u32, u32, u32, u32, u32), masks: &[HeadMask]) -> Case {
    let (heads, kv_heads, q_len, q_start, head_dim) = sizes;
    Case {
        shape: AttentionShape {
            heads,
            kv_heads,
            q_len,
            q_start,
            head_dim,
            layout: Layout::TokensFirst,
        },
        masks: masks.to_vec(),
        logits: 1.0,
    }
}

fn cases() -> Vec<Case> {
    let ragged = [mask(4, 3), mask(64, 128), DENSE, mask(0, 1)];
    vec![
        case((1, 1, 1, 0, 64), &[DENSE]),
        case((3, 1, 5, 0, 64), &[mask(64, 1)]),
        case((4, 1, 64, 0, 128), &[DENSE]),
        case((7, 1, 65, 0, 64), &[mask(8, 20)]),
        case((8, 2, 200, 0, 128), &[mask(64, 64), DENSE]),
        case((6, 2, 321, 0, 32), &[mask(0, 100), mask(128, 1)]),
        case((4, 4, 300, 0, 96), &ragged),
        case(
            (3, 3, 513, 0, 128),
            &[mask(64, 192), mask(16, 300), mask(100, 65)],
        ),
        case((2, 2, 130, 0, 16), &[mask(0, 64), mask(64, 64)]),
        Case {
            logits: 25.0,
            ..case((4, 2, 260, 0, 128), &[DENSE, mask(64, 100)])
        },
    ]
}

struct Tensors<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    grad_out: Vec<T>,
}

impl<T: Value> Tensors<T> {
    fn of(case: &Case, seed: u64) -> Self {
        let mut random = Random(seed);
        let shape = case.shape;
        let queries = (shape.q_len * shape.heads * shape.head_dim) as usize;
        let keys = ((shape.q_start + shape.q_len) * shape.kv_heads * shape.head_dim) as usize;
        Self {
            q: random.values(queries, case.logits),
            k: random.values(keys, 1.0),
            v: random.values(keys, 1.0),
            grad_out: random.values(queries, 1.0),
        }
    }
}

/// Out, lse (of rows that exist, as the twin has it) and gradients; every buffer is full of NaN before the launch.
fn on_device<T: Value>(
    gpu: &Gpu,
    case: &Case,
    tensors: &Tensors<T>,
    backward: bool,
) -> [Vec<f64>; 5] {
    let shape = case.shape;
    let attention = Attention::new::<T>(gpu, shape, &case.masks).unwrap();
    let poisoned = |len| gpu.upload(&vec![T::of(f32::NAN); len]).unwrap();
    let rows = || gpu.upload(&vec![f32::NAN; shape.row_values()]).unwrap();
    let upload = |tensor: &[T]| gpu.upload(tensor).unwrap();
    let (q, k) = (upload(&tensors.q), upload(&tensors.k));
    let (v, grad_out) = (upload(&tensors.v), upload(&tensors.grad_out));
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    let (mut out, mut lse, mut row_dot) = (poisoned(q.len()), rows(), rows());
    attention
        .forward(gpu, &q, &k, &v, scale, &mut out, &mut lse)
        .unwrap();
    let mut grads = [q.len(), k.len(), v.len()].map(poisoned);
    if backward {
        attention
            .row_dot(gpu, &out, &grad_out, &mut row_dot)
            .unwrap();
        let [grad_q, grad_k, grad_v] = &mut grads;
        let gradients = AttentionGradients {
            q: grad_q,
            k: grad_k,
            v: grad_v,
        };
        attention
            .backward(gpu, &q, &k, &v, &grad_out, &lse, &row_dot, scale, gradients)
            .unwrap();
    }
    let of = |buffer| -> Vec<f64> {
        gpu.download(buffer)
            .unwrap()
            .into_iter()
            .map(T::get)
            .collect()
    };
    let padded = shape.q_len.next_multiple_of(64) as usize;
    let lse = gpu.download(&lse).unwrap();
    let heads = shape.heads as usize;
    let lse = (0..shape.q_len as usize * heads)
        .map(|i| f64::from(lse[i % heads * padded + i / heads]))
        .collect();
    [of(&out), lse, of(&grads[0]), of(&grads[1]), of(&grads[2])]
}

/// The twins' out, lse and gradients.
fn expected<T: Value>(
    case: &Case,
    tensors: &Tensors<T>,
    masks: &[HeadMask],
    backward: bool,
) -> [Vec<f64>; 5] {
    let shape = attention_prefill::AttentionShape {
        heads: case.shape.heads as usize,
        kv_heads: case.shape.kv_heads as usize,
        head_dim: case.shape.head_dim as usize,
    };
    let of = |tensor: &[T]| -> Vec<f32> { tensor.iter().map(|x| x.get() as f32).collect() };
    let (q, k, v) = (of(&tensors.q), of(&tensors.k), of(&tensors.v));
    let attended = attention_prefill(shape, &q, &k, &v, masks, case.shape.q_start);
    let mut gradients = [const { Vec::new() }; 3];
    if backward {
        let all = attention_backward(shape, &q, &k, &v, &of(&tensors.grad_out), masks);
        gradients = [all.d_q, all.d_k, all.d_v];
    }
    let [d_q, d_k, d_v] = gradients;
    [attended.o, attended.lse, d_q, d_k, d_v]
}

const NAMES: [&str; 5] = ["out", "lse", "grad_q", "grad_k", "grad_v"];

/// Outputs and probabilities are rounded to the type, lse is f32; gradients are measured against the largest one, since
/// they are differences of rounded terms.
fn results<T: Value>(
    actual: &[Vec<f64>; 5],
    expected: &[Vec<f64>; 5],
    logits: f32,
) -> Vec<Comparison> {
    let step = T::STEP;
    let count = if expected[2].is_empty() { 2 } else { 5 };
    (0..count)
        .map(|i| {
            let largest = Tolerance::of_largest(1.0, &expected[i]).abs;
            let tolerance = match i {
                0 => Tolerance::new(1.5 * step, step),
                1 => Tolerance::new(2e-5, 1e-5),
                _ => Tolerance::new(
                    1e-5 + 3.0 * step * f64::from(logits).sqrt() * largest,
                    2.0 * step,
                ),
            };
            compare(&actual[i], &expected[i], tolerance)
        })
        .collect()
}

fn check<T: Value>(gpu: &Gpu, case: &Case, seed: u64, backward: bool) {
    let tensors = Tensors::<T>::of(case, seed);
    let actual = on_device(gpu, case, &tensors, backward);
    let expected = expected(case, &tensors, &case.masks, backward);
    for (i, result) in results::<T>(&actual, &expected, case.logits)
        .iter()
        .enumerate()
    {
        let largest = Tolerance::of_largest(1.0, &expected[i]).abs;
        let label = format!(
            "{:?} {:?} {:?} {}",
            T::TYPE,
            case.shape,
            case.masks,
            NAMES[i]
        );
        println!(
            "{label}: error {:.2e}, largest value {largest:.2e}",
            result.max_error
        );
        let _ = result.assert(&label);
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn outputs_and_gradients_agree_with_the_twins() {
    let gpu = Gpu::open(0, None).unwrap();
    for (seed, case) in cases().iter().enumerate() {
        check::<bf16>(&gpu, case, seed as u64, true);
        check::<f16>(&gpu, case, seed as u64 + 50, true);
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_later_chunk_sees_what_came_before() {
    let gpu = Gpu::open(0, None).unwrap();
    for (sizes, masks) in [
        ((8, 2, 100, 64, 64), [mask(64, 64), DENSE]),
        ((4, 2, 77, 301, 128), [mask(16, 90), mask(0, 33)]),
        ((2, 2, 1, 500, 128), [DENSE, mask(64, 100)]),
    ] {
        check::<bf16>(&gpu, &case(sizes, &masks), 9, false);
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn the_same_bytes_twice() {
    let gpu = Gpu::open(0, None).unwrap();
    let case = case((8, 2, 700, 0, 128), &[mask(64, 200), DENSE]);
    let tensors = Tensors::<bf16>::of(&case, 3);
    let once = || on_device(&gpu, &case, &tensors, true);
    assert_eq!(once(), once());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_window_one_key_off_is_seen() {
    let gpu = Gpu::open(0, None).unwrap();
    let case = case((2, 1, 200, 0, 64), &[mask(8, 20)]);
    let tensors = Tensors::<bf16>::of(&case, 4);
    let actual = on_device(&gpu, &case, &tensors, true);
    for wrong in [mask(8, 19), mask(8, 21), mask(9, 20), mask(7, 20)] {
        let expected = expected(&case, &tensors, &[wrong], true);
        for (name, result) in NAMES.iter().zip(results::<bf16>(&actual, &expected, 1.0)) {
            assert!(
                !result.passed(),
                "{name} cannot tell {wrong:?} from the case's"
            );
        }
    }
}
