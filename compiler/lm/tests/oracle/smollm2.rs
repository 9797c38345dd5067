//! SmolLM2-135M-Instruct: greedy tokens under the dense model and under a fixed plan, against `PyTorch`.

use std::path::PathBuf;

use moa_lm::{Cpu, Lm};
use moa_mask::ModelMasks;
use moa_model::Checkpoint;
use serde_json::Value;

use crate::fixture::{exact_masks, fixtures, load};

/// Below this margin between the two best logits an engine may choose either.
const CLEAR: f64 = 0.05;

pub(crate) fn smollm2() -> Lm<Cpu> {
    let default = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let path =
        std::env::var_os("MOA_SMOLLM2_GGUF").map_or_else(|| PathBuf::from(default), PathBuf::from);
    load(Checkpoint::open_weights(path).unwrap())
}

fn u32s(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

fn f64s(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_f64().unwrap())
        .collect()
}

/// Largest logit and its token, and how far ahead of the second it is.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    (order[0].0, order[0].1 - order[1].1)
}

#[test]
#[cfg_attr(skip_smollm2, ignore = "the SmolLM2 weights are absent")]
fn greedy_tokens_are_the_oracles_wherever_the_margin_is_clear() {
    let lm = smollm2();
    let recorded: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("smollm2/greedy.json")).unwrap())
            .unwrap();
    let sink = u32::try_from(recorded["plan"]["sink"].as_u64().unwrap()).unwrap();
    let spans: Vec<Vec<u32>> = recorded["plan"]["spans"]
        .as_array()
        .unwrap()
        .iter()
        .map(u32s)
        .collect();
    let plan = exact_masks(&spans, sink, 8192);
    let mut checked = 0;
    for case in recorded["cases"].as_array().unwrap() {
        for (kind, masks) in [("dense", None), ("plan", Some(&plan))] {
            checked += follow(&lm, case, kind, masks);
        }
    }
    println!("SmolLM2: {checked} greedy tokens equal");
    assert!(checked > 100);
}

/// Feeds the recorded tokens and compares each greedy choice; returns how many had a clear margin.
fn follow(lm: &Lm<Cpu>, case: &Value, kind: &str, masks: Option<&ModelMasks>) -> usize {
    let ids = u32s(&case["ids"]);
    let (tokens, margins) = (
        u32s(&case[format!("{kind}_greedy")]),
        f64s(&case[format!("{kind}_top1_margin")]),
    );
    let mut session = lm.session(masks, 1600).unwrap();
    let mut logits = session.prefill(&ids).unwrap();
    let top = &case[format!("{kind}_first_top20")];
    let mut worst = 0.0f64;
    for pair in top.as_array().unwrap() {
        let (id, logit) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
        worst = worst.max((f64::from(logits[usize::try_from(id).unwrap()]) - logit).abs());
    }
    println!(
        "SmolLM2 {} {kind}: first 20 logits, largest error {worst:.2e}",
        case["name"]
    );
    assert!(worst < 5e-4, "{worst}"); // measured 6e-5
    let mut clear = 0;
    for (step, (&token, &margin)) in tokens.iter().zip(&margins).enumerate() {
        let (found, lead) = best(&logits);
        if margin > CLEAR {
            assert_eq!(
                found, token,
                "{} {kind} step {step}: margin {margin}, ours leads by {lead}",
                case["name"]
            );
            clear += 1;
        }
        if step + 1 < tokens.len() {
            logits = session.decode(token).unwrap();
        }
    }
    clear
}
