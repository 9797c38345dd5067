//! Logits, losses and profiles of whole models.

use half::{bf16, f16};
use moa_kernels::{Element, ElementType};
use moa_lm::{Estimator, Influence, LossKind, ProfileOptions, Sample, Targets, WeightSource};
use moa_mask::{MaskGrid, ModelMasks};

use crate::fixture::{cuda, ids, load, on_cpu, part, ragged, random, random_of, tiny};

/// Parts of the largest value that may differ: of logits, of a loss, of a curve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) logits: f64,
    pub(crate) loss: f64,
    pub(crate) curves: f64,
}

/// Measured maxima stand in docs/measurements.md. A model of random weights amplifies rounding more than a trained one.
fn allowed<T: Element>() -> Allowed {
    match T::TYPE {
        ElementType::F16 => Allowed {
            logits: 4e-2,
            loss: 2e-3,
            curves: 1e-2,
        },
        ElementType::Bf16 => Allowed {
            logits: 2.5e-1,
            loss: 2e-2,
            curves: 8e-2,
        },
    }
}

/// Largest error of any curve, in parts of the curve's own largest magnitude over all heads; signed ones of the absolute ones'.
pub(crate) fn curve_parts(actual: &Influence, expected: &Influence) -> Vec<(Estimator, f64)> {
    let largest = |estimator| {
        expected
            .curve(estimator)
            .iter()
            .fold(0.0f64, |largest, x| largest.max(x.abs()))
    };
    Estimator::ALL
        .into_iter()
        .map(|estimator| {
            let (len, wanted) = (
                actual.curve(estimator).len(),
                expected.curve(estimator).len(),
            );
            assert_eq!(len, wanted, "{estimator}");
            let scale = match estimator {
                Estimator::JointSigned | Estimator::JointPositive => largest(Estimator::JointAbs),
                other => largest(other),
            };
            let worst = actual
                .curve(estimator)
                .iter()
                .zip(expected.curve(estimator))
                .map(|(a, e)| (a - e).abs())
                .fold(0.0, f64::max);
            (estimator, worst / scale.max(f64::MIN_POSITIVE))
        })
        .collect()
}

fn compare<T: Element + std::fmt::Debug + Send + Sync>(
    name: &str,
    source: &dyn WeightSource,
    sample: &Sample,
    masked: &ModelMasks,
    grid: MaskGrid,
) {
    let allowed = allowed::<T>();
    let (cpu, gpu) = (on_cpu(source), load(cuda::<T>(), source));
    for masks in [None, Some(masked)] {
        let expected = cpu.logits(&sample.ids, masks, &()).unwrap();
        let mut actual = gpu.logits(&sample.ids, masks, &()).unwrap();
        let worst = part(&actual, &expected);
        println!(
            "{name} {:?} masked {}: logits {worst:.2e}",
            T::TYPE,
            masks.is_some()
        );
        assert!(worst <= allowed.logits, "{name}: logits differ by {worst}");
        let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        actual[5] += 0.7 * largest;
        assert!(part(&actual, &expected) > allowed.logits);
    }
    for (at, loss) in [
        (None, LossKind::CrossEntropy),
        (Some(masked), LossKind::CrossEntropy),
        (Some(masked), LossKind::KlToDense),
    ] {
        let options = ProfileOptions {
            grid,
            at,
            loss,
            blocks: Some(64),
            ..Default::default()
        };
        let expected = cpu.influence(sample, &options, &()).unwrap();
        let actual = gpu.influence(sample, &options, &()).unwrap();
        let loss_error = (actual.loss - expected.loss).abs() / (1e-2 + expected.loss);
        println!(
            "{name} {:?} masked {} {loss:?}: loss {loss_error:.2e}",
            T::TYPE,
            at.is_some()
        );
        assert!(
            loss_error <= allowed.loss,
            "{} {}",
            actual.loss,
            expected.loss
        );
        for (estimator, worst) in curve_parts(&actual, &expected) {
            println!(
                "{name} {:?} masked {} {loss:?}: {estimator} {worst:.2e}",
                T::TYPE,
                at.is_some()
            );
            // Squares err twice.
            let twice = if estimator == Estimator::JointSquare {
                2.0
            } else {
                1.0
            };
            assert!(
                worst <= twice * allowed.curves,
                "{name} {estimator}: {worst}"
            );
        }
        let (maps, of) = (
            actual.maps.as_ref().unwrap(),
            expected.maps.as_ref().unwrap(),
        );
        let worst = part(&maps.abs, &of.abs);
        println!(
            "{name} {:?} masked {} {loss:?}: maps {worst:.2e}",
            T::TYPE,
            at.is_some()
        );
        assert!(worst <= allowed.curves, "maps differ by {worst}");
        let sums = of.abs.iter().fold(0.0f64, |m, x| m.max(*x));
        for (a, e) in maps.signed.iter().zip(&of.signed) {
            assert!((a - e).abs() <= allowed.curves * sums, "signed maps");
        }
        // Another point of expansion is another profile.
        let other = ProfileOptions {
            at: if at.is_none() { Some(masked) } else { None },
            ..options
        };
        if loss == LossKind::CrossEntropy {
            let wrong = cpu.influence(sample, &other, &()).unwrap();
            let worst = curve_parts(&actual, &wrong)[0].1;
            assert!(worst > allowed.curves, "{name}: {worst} cannot tell");
        }
        // The same input gives the same bytes, and so do joint curves alone.
        assert_eq!(actual, gpu.influence(sample, &options, &()).unwrap());
        let joint = ProfileOptions {
            blocks: None,
            ..options
        };
        let joint = gpu.influence(sample, &joint, &()).unwrap();
        assert!(joint.curve(Estimator::PerEntry).is_empty() && joint.maps.is_none());
        assert_eq!(joint.curves[1..], actual.curves[1..]);
    }
}

fn both(name: &str, source: &dyn WeightSource, sample: &Sample, sink: u32, grid: MaskGrid) {
    let len = u32::try_from(sample.ids.len()).unwrap();
    let masked = |step| ragged(source.config(), sink, len, step);
    compare::<f16>(name, source, sample, &masked(1), grid);
    compare::<bf16>(name, source, sample, &masked(1), grid);
    // As plans have them: spans of the curves themselves. Of a short text these would hide next to nothing.
    if len >= 256 {
        compare::<f16>(name, source, sample, &masked(grid.block()), grid);
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn random_models_are_the_cpus() {
    for (source, len, sink) in [
        (random(2, 6, 2, 16), 333, 64),
        (random(3, 4, 4, 64), 512, 64),
        (random(2, 7, 1, 128), 257, 64),
        (random(2, 4, 2, 96), 130, 64),
    ] {
        let sample = Sample {
            ids: ids(len, 601),
            targets: Targets::At((len / 3..len).step_by(2).collect()),
        };
        let config = source.config();
        let name = format!("{} x {}", config.heads, config.head_dim);
        both(&name, &source, &sample, sink, MaskGrid::default());
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn grids_without_a_sink_or_with_a_long_one() {
    let source = random(2, 4, 2, 32);
    let sample = Sample::new(ids(400, 601), 200);
    for sink in [0, 128] {
        let grid = MaskGrid::new(sink, 64).unwrap();
        both("sink", &source, &sample, sink, grid);
    }
    // Plans may have a narrower sink than the curves.
    both("narrow", &source, &sample, 16, MaskGrid::default());
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn tiny_checkpoints_are_the_cpus() {
    for name in ["tiny-llama", "tiny-qwen2", "tiny-llama3"] {
        let source = tiny(name);
        let vocab = source.config().vocab_size;
        let sample = Sample::new(ids(300, vocab), 150);
        both(name, &source, &sample, 64, MaskGrid::default());
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn many_layers() {
    let mut config = random(12, 9, 3, 64).config().clone();
    config.ffn_dim = 1536;
    config.vocab_size = 49_152;
    let source = random_of(config);
    let sample = Sample::new(ids(900, 49_152), 600);
    both("smollm2's shape", &source, &sample, 64, MaskGrid::default());
}
