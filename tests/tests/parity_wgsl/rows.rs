//! Kernels that work row by row: norms, gates, and the choice of a token.

use bytemuck::bytes_of;
use moa_mask::abi::{RowParams, StepState};
use moa_reference::compare::{Tolerance, compare};
use moa_shaders::{ARGMAX_PARTS, Dialect, HeadShape, Kernel, VectorType};
use moa_tests::attention::{packed, unpacked};
use moa_tests::cases;
use moa_tests::gpu::{Data, POISON, floats, reductions, test_gpu, test_gpu_in};
use moa_tests::random::Random;

use crate::{bits, state};

const NORM: Tolerance = Tolerance::new(1e-6, 2e-6);
const SWIGLU: Tolerance = Tolerance::new(1e-6, 1e-5);
/// Attention's shape, which these kernels do not use.
const SHAPE: HeadShape = HeadShape {
    heads: 1,
    kv_heads: 1,
    head_dim: 64,
};

fn row_params(dim: u32, last_only: bool) -> RowParams {
    RowParams {
        dim,
        eps: 1e-5,
        last_only: last_only.into(),
        reserved: 0,
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn norms_equal_their_twin() {
    for dialect in reductions() {
        check_norms(dialect);
    }
}

fn check_norms(dialect: Dialect) {
    for (dim, tokens) in cases::ROWS {
        for kind in VectorType::ALL {
            let mut random = Random::new(u64::from(dim));
            let x = random.spiked((dim * tokens) as usize, 3.0);
            let weight = unpacked(&packed(&random.spiked(dim as usize, 1.0)));
            let words = if kind == VectorType::F16 {
                packed(&weight)
            } else {
                bits(&weight)
            };
            let run = |last_only: bool, rows: u32| {
                let outputs = test_gpu_in(dialect).run(
                    Kernel::RmsNorm(kind),
                    SHAPE,
                    (1, rows),
                    &[
                        ("params", Data::Bytes(bytes_of(&row_params(dim, last_only)))),
                        ("state", Data::U32(&state(0, tokens))),
                        ("x", Data::F32(&x)),
                        ("y", Data::Poison((dim * rows) as usize)),
                        ("vector", Data::U32(&words)),
                    ],
                );
                floats(&outputs["y"])
            };
            let expected = moa_reference::rms_norm::rms_norm(&x, &weight, f64::from(1e-5f32));
            let error = compare(&run(false, tokens), &expected, NORM).assert("rms_norm");
            println!("rms_norm, {} x {dim}: {error:.2e}", tokens);
            let last = &expected[(dim * (tokens - 1)) as usize..];
            let _ = compare(&run(true, 1), last, NORM).assert("rms_norm of the last token");
            let other = moa_reference::rms_norm::rms_norm(&x, &weight, 0.1);
            assert!(
                !compare(&run(false, tokens), &other, NORM).passed(),
                "another eps passed"
            );
        }
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn gates_equal_their_twin() {
    for (dim, tokens) in cases::ROWS {
        let mut random = Random::new(u64::from(dim) + 1);
        let count = (dim * tokens) as usize;
        // 4 x 30 reaches far into both tails.
        let (gate, up) = (random.spiked(count, 30.0), random.spiked(count, 1.0));
        let outputs = test_gpu().run(
            Kernel::Swiglu,
            SHAPE,
            ((dim / 4).div_ceil(64), tokens),
            &[
                ("params", Data::Bytes(bytes_of(&row_params(dim, false)))),
                ("state", Data::U32(&state(0, tokens))),
                ("gate", Data::F32(&gate)),
                ("up", Data::F32(&up)),
            ],
        );
        let actual = floats(&outputs["gate"]);
        let error =
            compare(&actual, &moa_reference::swiglu::swiglu(&gate, &up), SWIGLU).assert("swiglu");
        println!("swiglu, {tokens} x {dim}: {error:.2e}");
        assert!(
            !compare(&actual, &moa_reference::swiglu::swiglu(&up, &gate), SWIGLU).passed(),
            "swapped passed"
        );
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn the_largest_logit_is_chosen_and_the_step_advances() {
    for dialect in reductions() {
        check_choice(dialect);
    }
}

fn check_choice(dialect: Dialect) {
    let mut random = Random::new(5);
    // What all parts take in one turn.
    let turn = ARGMAX_PARTS as usize * 256 * 4;
    for vocab in [1u32, 2, 255, 256, 257, 5000, 49_152, 151_937] {
        let plain = random.spiked(vocab as usize, 10.0);
        let mut tied = plain.clone();
        let first = random.below(vocab) as usize;
        // Of another turn of the same thread, another thread's, and another part's.
        for other in [0, turn, 4, 1024, 2 * turn + 1, random.below(vocab) as usize] {
            if let Some(logit) = tied.get_mut((first + other) % vocab as usize) {
                *logit = 100.0;
            }
        }
        let mut with_nan = plain.clone();
        with_nan[first] = f32::NAN;
        let all_nan = vec![f32::NAN; vocab as usize];
        for (logits, stopped) in [
            (&plain, 0),
            (&tied, 0),
            (&with_nan, 0),
            (&all_nan, 0),
            (&plain, 1),
        ] {
            let before = StepState {
                start: 40,
                len: 1,
                step: 2,
                stopped,
            };
            let mut gpu = test_gpu_in(dialect);
            let parts = gpu.run(
                Kernel::ArgmaxParts,
                SHAPE,
                (ARGMAX_PARTS, 1),
                &[
                    ("params", Data::Bytes(bytes_of(&row_params(vocab, false)))),
                    ("logits", Data::F32(&whole_vectors(logits))),
                    ("best", Data::Poison(2 * ARGMAX_PARTS as usize)),
                ],
            );
            let outputs = gpu.run(
                Kernel::Argmax,
                SHAPE,
                (1, 1),
                &[
                    ("state", Data::U32(&bytemuck::cast::<_, [u32; 4]>(before))),
                    ("best", Data::U32(&parts["best"])),
                    ("tokens", Data::Poison(3)),
                    ("ids", Data::Poison(4)),
                    ("stops", Data::U32(&[0; 3])),
                ],
            );
            if stopped == 1 {
                assert_eq!(outputs["tokens"], [POISON; 3], "the text has ended");
                assert_eq!(outputs["ids"], [POISON; 4]);
                assert_eq!(outputs["state"], [40, 1, 2, 1]);
                continue;
            }
            let expected = moa_reference::argmax::argmax(logits);
            assert_eq!(outputs["tokens"], [expected, POISON, POISON]);
            assert_eq!(outputs["ids"], [POISON, POISON, expected, POISON]);
            assert_eq!(
                outputs["state"],
                [41, 1, 3, 0],
                "past the tokens in flight, one more chosen"
            );
        }
    }
}

/// The logits, and NaN up to whole vectors.
pub(crate) fn whole_vectors(logits: &[f32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    logits.resize(logits.len().next_multiple_of(4), f32::NAN);
    logits
}
