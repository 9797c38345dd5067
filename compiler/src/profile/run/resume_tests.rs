//! A device that fails in the middle of a profile: what was finished is kept, the error says what to do, and the run goes on there or elsewhere.

use std::cell::Cell;

use moa_cuda::CudaError;
use moa_lm::{Cpu, Lm};

use super::*;
use crate::cli::Global;
use crate::hint::hint_of;
use crate::source::Source;

const LENGTH: u32 = 300;
const SAMPLES: usize = 5;
/// Samples that a device finishes before it is full.
const FINISHED: usize = 2;

/// A model whose device is full after so many samples.
struct Failing<'a> {
    model: &'a dyn Profiled,
    left: Cell<usize>,
}

impl Profiled for Failing<'_> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn influence(
        &self,
        sample: &moa_lm::Sample,
        options: &ProfileOptions<'_>,
        observer: &dyn Observer,
    ) -> moa_lm::Result<Influence> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(LmError::Device {
                device: "a GPU".into(),
                source: Box::new(CudaError::OutOfMemory {
                    doing: "allocating",
                }),
            });
        };
        self.left.set(left);
        self.model.influence(sample, options, observer)
    }
}

fn source() -> Source {
    let folder = std::env::var_os("MOA_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"),
        PathBuf::from,
    );
    Source::open(&folder.join("tiny-llama")).unwrap()
}

fn on_cpu() -> Model {
    Model::Cpu(Box::new(Lm::load(Cpu, &source(), &()).unwrap()))
}

fn samples() -> BTreeMap<u32, Vec<Sample>> {
    let sample = |seed: u32| Sample {
        ids: (0..LENGTH)
            .map(|i| (i * i + seed * 31 + i / 7) % 320)
            .collect(),
        response_start: 200,
        kind: "lines".into(),
    };
    let samples = (0..u32::try_from(SAMPLES).unwrap()).map(sample);
    BTreeMap::from([(LENGTH, samples.collect())])
}

fn profile(model: &dyn Profiled, work: &Path) -> anyhow::Result<Curves> {
    let printer = Printer::new(&Global {
        json: false,
        quiet: true,
        verbose: 0,
        no_progress: true,
    });
    let profiler = Profiler {
        lm: model,
        work,
        printer: &printer,
        cancel: &AtomicBool::new(false),
    };
    let spec = ProfileSpec {
        grid: MaskGrid::default(),
        loss: LossKind::CrossEntropy,
        at: None,
        per_entry: true,
        blocks: None,
        temperature: 1.0,
        source_sha256: "00".into(),
    };
    profiler.run(&samples(), &spec)
}

/// Fails on one model, goes on on another; returns the curves of all samples.
fn resumed(first: &dyn Profiled, second: &dyn Profiled) -> Curves {
    let work = tempfile::tempdir().unwrap();
    let full = Failing {
        model: first,
        left: Cell::new(FINISHED),
    };
    let error = profile(&full, work.path()).unwrap_err();
    let (said, hint) = (format!("{error:#}"), hint_of(&error).unwrap());
    assert!(said.contains("out of device memory"), "{said}");
    assert!(hint.contains("--device cpu"), "{hint}");
    assert!(hint.contains(&work.path().display().to_string()), "{hint}");
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), FINISHED);
    // What is left, and not a sample more.
    let rest = Failing {
        model: second,
        left: Cell::new(SAMPLES - FINISHED),
    };
    profile(&rest, work.path()).unwrap()
}

/// Largest difference of any curve, in parts of the largest magnitude of its family.
fn worst(actual: &Curves, expected: &Curves) -> f64 {
    let of = |curves: &Curves, estimator: Estimator| -> Vec<f64> {
        let kind = &curves.lengths[&LENGTH].kinds["lines"];
        assert_eq!(kind.samples as usize, SAMPLES);
        kind.mean[estimator.index()].clone()
    };
    let mut worst = 0.0f64;
    for estimator in Estimator::ALL {
        let family = match estimator {
            Estimator::JointSigned | Estimator::JointPositive => Estimator::JointAbs,
            other => other,
        };
        let largest = of(expected, family)
            .iter()
            .fold(0.0f64, |m, x| m.max(x.abs()));
        let pairs = of(actual, estimator)
            .into_iter()
            .zip(of(expected, estimator));
        for (a, e) in pairs {
            worst = worst.max((a - e).abs() / largest);
        }
    }
    worst
}

#[test]
fn a_profile_goes_on_after_its_device_was_full() {
    let cpu = on_cpu();
    let work = tempfile::tempdir().unwrap();
    let whole = profile(&cpu, work.path()).unwrap();
    let resumed = resumed(&cpu, &cpu);
    assert!(
        resumed.to_bytes().unwrap() == whole.to_bytes().unwrap(),
        "the same bytes"
    );
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_profile_goes_on_on_the_other_device() {
    let cpu = on_cpu();
    let device = moa_cuda::Gpu::open(None).unwrap();
    let cuda = Model::Cuda(Box::new(Lm::load(device, &source(), &()).unwrap()));
    let work = tempfile::tempdir().unwrap();
    let whole = profile(&cpu, work.path()).unwrap();
    for (name, first, second) in [
        ("CUDA, then CPU", &cuda, &cpu),
        ("CPU, then CUDA", &cpu, &cuda),
    ] {
        let error = worst(&resumed(first, second), &whole);
        println!("{name}: {error:.2e} of the largest value");
        // What compiler/cuda/tests/parity allows f16, squares err twice.
        assert!(error > 0.0 && error < 2e-2, "{name}: {error}");
    }
}
