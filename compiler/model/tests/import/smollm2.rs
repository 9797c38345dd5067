//! SmolLM2-135M-Instruct from its published GGUF file: the model of the demo.

use std::path::{Path, PathBuf};

use moa_format::Family;
use moa_model::{Checkpoint, Message, SourceType};
use serde_json::Value;

fn model() -> Checkpoint {
    let default =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.models/SmolLM2-135M-Instruct.Q4_1.gguf");
    Checkpoint::open(std::env::var_os("MOA_SMOLLM2_GGUF").map_or(default, PathBuf::from)).unwrap()
}

fn cases() -> Vec<Value> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/smollm2/greedy.json");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    json["cases"].as_array().unwrap().clone()
}

#[test]
#[cfg_attr(
    skip_smollm2,
    ignore = "no SmolLM2 GGUF file: set MOA_SMOLLM2_GGUF or run cargo xtask setup"
)]
fn prompts_have_the_ids_on_record() {
    let model = model();
    let tokenizer = model.tokenizer().unwrap();
    let cases = cases();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let ids: Vec<u32> = case["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect();
        assert!(!ids.is_empty());
        assert_eq!(
            tokenizer.encode(prompt, false).unwrap(),
            ids,
            "{}",
            case["name"]
        );
        assert_eq!(
            tokenizer.encode(prompt, true).unwrap(),
            ids,
            "this model adds nothing around a text"
        );
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), prompt);
    }
}

#[test]
#[cfg_attr(
    skip_smollm2,
    ignore = "no SmolLM2 GGUF file: set MOA_SMOLLM2_GGUF or run cargo xtask setup"
)]
fn the_template_writes_the_prompt_on_record() {
    let model = model();
    let tokenizer = model.tokenizer().unwrap();
    let capital = cases()
        .into_iter()
        .find(|case| case["name"] == "capital")
        .unwrap();
    let question = [Message::new("user", "What is the capital of France?")];
    let prompt = tokenizer.apply_chat_template(&question, true).unwrap();
    assert_eq!(
        prompt,
        capital["prompt"].as_str().unwrap(),
        "with the default system prompt"
    );
    let own = [
        Message::new("system", "Be brief."),
        question[0].clone(),
        Message::new("assistant", "Paris."),
    ];
    assert_eq!(
        tokenizer.apply_chat_template(&own, false).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n\
         <|im_start|>assistant\nParis.<|im_end|>\n"
    );
}

#[test]
#[cfg_attr(
    skip_smollm2,
    ignore = "no SmolLM2 GGUF file: set MOA_SMOLLM2_GGUF or run cargo xtask setup"
)]
fn the_shape_and_the_weights_are_those_published() {
    let model = model();
    let config = model.config();
    assert_eq!(
        (
            config.family,
            config.layers,
            config.hidden_dim,
            config.ffn_dim
        ),
        (Family::Llama, 30, 576, 1536)
    );
    assert_eq!(
        (
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.vocab_size
        ),
        (9, 3, 64, 49152)
    );
    assert_eq!(
        (config.max_context, config.rope.theta, config.rms_norm_eps),
        (8192, 100_000.0, 1e-5)
    );
    assert_eq!(
        (config.tied_embeddings, config.bos, config.eos[0]),
        (true, Some(1), 2)
    );
    assert_eq!(
        (model.name(), model.license()),
        ("Smollm2 135M 8k Lc100K Mix1 Ep2", Some("apache-2.0"))
    );
    assert_eq!(
        model.source_hash().unwrap(),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    );
    assert_eq!(model.weight_file_bytes(), 98_362_432);

    let types: Vec<SourceType> = moa_format::tensors(config)
        .iter()
        .map(|spec| model.source_type(&spec.name).unwrap())
        .collect();
    let count = |wanted| types.iter().filter(|&&ty| ty == wanted).count();
    assert_eq!(
        (
            count(SourceType::Q4_1),
            count(SourceType::Q8_0),
            count(SourceType::F32)
        ),
        (210, 1, 61)
    );
    for spec in moa_format::tensors(config) {
        let weights = model.tensor(&spec.name).unwrap().to_f32().unwrap();
        assert_eq!(weights.len() as u64, spec.len());
        let largest = weights
            .iter()
            .fold(0f32, |most, weight| most.max(weight.abs()));
        assert!(largest > 0.0 && largest < 100.0, "{}: {largest}", spec.name);
    }
}
