//! What a device cannot do ends with an error and a hint, and it goes on working.

use std::error::Error as _;

use half::f16;
use moa_cuda::CudaError;
use moa_lm::{Device, Keep, LmError, ProfileOptions, Sample};
use moa_mask::MaskGrid;

use crate::fixture::{cuda, ids, load, on_cpu, random};
use crate::profiles::curve_parts;

/// The device's own error.
fn cause(error: &LmError) -> &CudaError {
    error.source().unwrap().downcast_ref::<CudaError>().unwrap()
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn out_of_memory_is_an_error_with_a_hint_and_nothing_is_lost() {
    let source = random(2, 6, 2, 64);
    let gpu = load(cuda::<f16>(), &source);
    let sample = Sample::new(ids(300, 601), 100);
    let options = ProfileOptions {
        per_entry: true,
        ..Default::default()
    };
    let before = gpu.influence(&sample, &options, &()).unwrap();
    // Takes all memory but a little, so that a profile fails on its way.
    let mut taken = Vec::new();
    let mut piece = 1usize << 34;
    while piece >= 1 << 18 {
        match gpu.device().zeros(piece / 4, Keep::Full) {
            Ok(buffer) => taken.push(buffer),
            Err(error) => {
                assert!(
                    matches!(cause(&error), CudaError::OutOfMemory { .. }),
                    "{error:?}"
                );
                piece /= 2;
            }
        }
    }
    let long = Sample::new(ids(4096, 601), 100);
    let error = gpu.influence(&long, &options, &()).unwrap_err();
    assert!(
        matches!(cause(&error), CudaError::OutOfMemory { .. }),
        "{error:?}"
    );
    assert!(cause(&error).hint().contains("--device cpu"));
    drop(taken);
    assert_eq!(gpu.influence(&sample, &options, &()).unwrap(), before);
    // And the CPU goes on with the same numbers, within what 16 bits allow.
    let there = on_cpu(&source).influence(&sample, &options, &()).unwrap();
    for (estimator, worst) in curve_parts(&before, &there) {
        assert!(worst < 0.1, "{estimator}: {worst}");
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn shapes_without_a_kernel_say_so() {
    let sample = Sample::new(ids(100, 601), 10);
    let options = ProfileOptions::default();
    let wide = load(cuda::<f16>(), &random(1, 2, 1, 256));
    let error = wide.influence(&sample, &options, &()).unwrap_err();
    assert!(
        matches!(
            cause(&error),
            CudaError::Shape {
                what: "head_dim",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(cause(&error).hint().contains("--device cpu"));
    let gpu = load(cuda::<f16>(), &random(1, 2, 1, 64));
    for (grid, blocks) in [
        (MaskGrid::new(8, 8).unwrap(), None),
        (MaskGrid::default(), Some(16)),
    ] {
        let options = ProfileOptions {
            grid,
            blocks,
            ..options
        };
        let error = gpu.influence(&sample, &options, &()).unwrap_err();
        assert!(
            matches!(cause(&error), CudaError::Shape { .. }),
            "{error:?}"
        );
    }
}
