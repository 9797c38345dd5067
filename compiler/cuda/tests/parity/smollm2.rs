//! SmolLM2-135M-Instruct, a trained model: which 16-bit type is near enough, and greedy tokens against `PyTorch`'s.

use std::fmt::Debug;
use std::path::PathBuf;

use half::{bf16, f16};
use moa_kernels::{Element, ElementType};
use moa_lm::{Lm, ProfileOptions, Sample, WeightSource};
use moa_mask::ModelMasks;
use serde_json::Value;

use crate::fixture::{checkpoint, cuda, exact_masks, fixtures, load, on_cpu, part};
use crate::profiles::curve_parts;

fn smollm2() -> impl WeightSource {
    let default = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let path =
        std::env::var_os("MOA_SMOLLM2_GGUF").map_or_else(|| PathBuf::from(default), PathBuf::from);
    checkpoint(path)
}

fn u32s(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

fn recorded() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("smollm2/greedy.json")).unwrap()).unwrap()
}

/// The longest of the recorded prompts.
fn text(recorded: &Value) -> Vec<u32> {
    let cases = recorded["cases"].as_array().unwrap().iter();
    cases
        .map(|case| u32s(&case["ids"]))
        .max_by_key(Vec::len)
        .unwrap()
}

fn plan(recorded: &Value) -> ModelMasks {
    let sink = u32::try_from(recorded["plan"]["sink"].as_u64().unwrap()).unwrap();
    let spans: Vec<Vec<u32>> = recorded["plan"]["spans"]
        .as_array()
        .unwrap()
        .iter()
        .map(u32s)
        .collect();
    exact_masks(&spans, sink, 8192)
}

/// Errors of logits and of every curve.
fn measure<T: Element + Debug + Send + Sync>(allowed_logits: f64, allowed_curves: f64) {
    let (source, recorded) = (smollm2(), recorded());
    let (cpu, gpu) = (on_cpu(&source), load(cuda::<T>(), &source));
    let (ids, masks) = (text(&recorded), plan(&recorded));
    let sample = Sample::new(ids.clone(), u32::try_from(ids.len() / 2).unwrap());
    for at in [None, Some(&masks)] {
        let expected = cpu.logits(&ids, at, &()).unwrap();
        let worst = part(&gpu.logits(&ids, at, &()).unwrap(), &expected);
        println!(
            "SmolLM2 {:?} masked {}: logits {worst:.2e} of the largest",
            T::TYPE,
            at.is_some()
        );
        assert!(worst < allowed_logits, "{worst}");
        let options = ProfileOptions {
            at,
            per_entry: true,
            ..Default::default()
        };
        let expected = cpu.influence(&sample, &options, &()).unwrap();
        let actual = gpu.influence(&sample, &options, &()).unwrap();
        let loss = (actual.loss - expected.loss).abs();
        println!(
            "SmolLM2 {:?} masked {}: loss {:.5}, off by {loss:.2e}",
            T::TYPE,
            at.is_some(),
            expected.loss
        );
        for (estimator, worst) in curve_parts(&actual, &expected) {
            println!(
                "SmolLM2 {:?} masked {}: {estimator} {worst:.2e} of the largest",
                T::TYPE,
                at.is_some()
            );
            assert!(worst < allowed_curves, "{estimator}: {worst}");
        }
    }
}

#[test]
#[cfg_attr(
    any(skip_cuda, skip_smollm2),
    ignore = "needs a CUDA device (MOA_TEST_CUDA=yes) and the SmolLM2 weights"
)]
fn smollm2_profiles_are_the_cpus() {
    measure::<f16>(1e-2, 3e-2);
    measure::<bf16>(1e-1, 3e-1);
}

/// Feeds the recorded tokens and compares each greedy choice with a clear margin; returns how many had one.
fn follow<T: Element + Debug + Send + Sync>(
    lm: &Lm<moa_cuda::Cuda<T>>,
    case: &Value,
    kind: &str,
    masks: Option<&ModelMasks>,
    clear: f64,
) -> usize {
    let tokens = u32s(&case[format!("{kind}_greedy")]);
    let margins = case[format!("{kind}_top1_margin")].as_array().unwrap();
    let mut session = lm.session(masks, 1600).unwrap();
    let mut logits = session.prefill(&u32s(&case["ids"])).unwrap();
    let mut checked = 0;
    for (step, (&token, margin)) in tokens.iter().zip(margins).enumerate() {
        let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
        if margin.as_f64().unwrap() > clear {
            assert_eq!(
                best.unwrap().0,
                token,
                "{} {kind} step {step}",
                case["name"]
            );
            checked += 1;
        }
        if step + 1 < tokens.len() {
            logits = session.decode(token).unwrap();
        }
    }
    checked
}

#[test]
#[cfg_attr(
    any(skip_cuda, skip_smollm2),
    ignore = "needs a CUDA device (MOA_TEST_CUDA=yes) and the SmolLM2 weights"
)]
fn smollm2_greedy_tokens_are_the_oracles_wherever_the_margin_is_clear() {
    fn run<T: Element + Debug + Send + Sync>() {
        let clear = if T::TYPE == ElementType::F16 {
            0.1
        } else {
            0.8
        };
        let (lm, recorded) = (load(cuda::<T>(), &smollm2()), recorded());
        let masks = plan(&recorded);
        let mut checked = 0;
        for case in recorded["cases"].as_array().unwrap() {
            for (kind, masks) in [("dense", None), ("plan", Some(&masks))] {
                checked += follow(&lm, case, kind, masks, clear);
            }
        }
        println!(
            "SmolLM2 {:?}: {checked} greedy tokens equal, margins above {clear}",
            T::TYPE
        );
        assert!(checked > 50);
    }
    run::<f16>();
    run::<bf16>();
}
