//! What is well-formed and not supported, or contradicts itself: refused by name, with what was expected.

use std::path::Path;

use moa_format::{Family, ModelConfig};
use moa_model::{Checkpoint, ModelError};
use serde_json::{Value, json};

use crate::making::{
    FloatType, GgufTensor, Meta, config_json, folder_tensors, gguf, safetensors, shape, weights,
    write_folder,
};

/// Opens a folder whose config.json was patched; the error's words.
fn refused(family: Family, patch: &Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(family);
    let mut json = config_json(&config);
    for (key, value) in patch.as_object().unwrap() {
        json[key] = value.clone();
    }
    write_folder(
        folder.path(),
        &json,
        &folder_tensors(&config, &weights(&config, 1)),
        FloatType::F32,
    );
    let error = Checkpoint::open(folder.path()).expect_err(&patch.to_string());
    assert!(error.hint().is_some(), "{error}");
    error.to_string()
}

fn assert_refused(family: Family, patch: &Value, words: &[&str]) {
    let message = refused(family, patch);
    for word in words {
        assert!(
            message.contains(word),
            "{patch}: {message:?} lacks {word:?}"
        );
    }
    assert!(!message.ends_with('.'));
}

#[test]
fn folders_name_what_is_not_supported() {
    use Family::{Llama, Mistral, Qwen2};
    for (family, patch, words) in [
        (
            Llama,
            json!({"architectures": ["GPT2LMHeadModel"]}),
            &["architecture", "GPT2LMHeadModel", "Qwen2"][..],
        ),
        (
            Llama,
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            &["LlamaForSequenceClassification"],
        ),
        (
            Mistral,
            json!({"architectures": ["MixtralForCausalLM"]}),
            &["MixtralForCausalLM"],
        ),
        (
            Mistral,
            json!({"num_local_experts": 8}),
            &["mixture of experts", "8"],
        ),
        (
            Mistral,
            json!({"sliding_window": 256}),
            &["sliding window", "256", "512"],
        ),
        (
            Qwen2,
            json!({"sliding_window": 256, "use_sliding_window": true}),
            &["sliding window", "256"],
        ),
        (
            Qwen2,
            json!({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}),
            &["sliding window", "64"],
        ),
        (
            Llama,
            json!({"layer_types": ["linear_attention"]}),
            &["layer type", "linear_attention"],
        ),
        (Llama, json!({"attention_bias": true}), &["attention bias"]),
        (Llama, json!({"mlp_bias": true}), &["MLP bias"]),
        (
            Llama,
            json!({"hidden_act": "gelu"}),
            &["activation", "gelu", "silu"],
        ),
        (
            Llama,
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            &["quantization", "gptq"],
        ),
        (
            Llama,
            json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}),
            &["rope scaling type", "yarn", "llama3"],
        ),
        (
            Llama,
            json!({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}),
            &["longrope"],
        ),
        (
            Llama,
            json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
            &["dynamic"],
        ),
        (
            Llama,
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}),
            &["rope_parameters by layer type"],
        ),
        (
            Llama,
            json!({"partial_rotary_factor": 0.5}),
            &["partial_rotary_factor", "0.5"],
        ),
    ] {
        assert_refused(family, &patch, words);
    }
}

#[test]
fn folders_name_the_field_that_is_wrong() {
    use Family::Llama;
    for (patch, words) in [
        (json!({"hidden_size": null}), &["hidden_size", "absent"][..]),
        (
            json!({"hidden_size": "wide"}),
            &["hidden_size", "wide", "integer"],
        ),
        (json!({"hidden_size": -32}), &["hidden_size", "-32"]),
        (
            json!({"num_hidden_layers": 4_294_967_296u64}),
            &["num_hidden_layers", "4294967296"],
        ),
        (
            json!({"num_attention_heads": 0}),
            &["the configuration describes no model"],
        ),
        (
            json!({"num_key_value_heads": 3}),
            &["the configuration describes no model"],
        ),
        (
            json!({"head_dim": 7}),
            &["the configuration describes no model"],
        ),
        (
            json!({"rms_norm_eps": -1.0}),
            &["the configuration describes no model"],
        ),
        (
            json!({"rope_theta": 0}),
            &["the configuration describes no model"],
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            &["factor", "absent"],
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": "4"}}),
            &["factor", "\"4\""],
        ),
        (
            json!({"rope_scaling": [1]}),
            &["rope_scaling", "a list", "an object"],
        ),
        (
            json!({"eos_token_id": 48}),
            &["the configuration describes no model"],
        ),
        (json!({"eos_token_id": "</s>"}), &["eos_token_id"]),
        (
            json!({"tie_word_embeddings": "yes"}),
            &["tie_word_embeddings", "true or false"],
        ),
        (json!({"num_hidden_layers": 1e300}), &["num_hidden_layers"]),
    ] {
        assert_refused(Llama, &patch, words);
    }
}

/// Python writes NaN and Infinity into JSON, and numbers that no f64 holds can be written by anybody.
#[test]
fn numbers_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    write_folder(
        folder.path(),
        &config_json(&config),
        &folder_tensors(&config, &weights(&config, 1)),
        FloatType::F32,
    );
    let text = config_json(&config).to_string();
    for value in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let damaged = text.replace(
            "\"rms_norm_eps\":0.00001",
            &format!("\"rms_norm_eps\":{value}"),
        );
        let damaged = damaged.replace(
            "\"rms_norm_eps\":1e-5",
            &format!("\"rms_norm_eps\":{value}"),
        );
        assert_ne!(damaged, text);
        std::fs::write(folder.path().join("config.json"), damaged).unwrap();
        assert!(
            matches!(
                Checkpoint::open(folder.path()),
                Err(ModelError::Json { .. })
            ),
            "{value}"
        );
    }
}

fn with_tensors(change: impl FnOnce(&mut Vec<(String, Vec<u64>, Vec<f32>)>)) -> ModelError {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    let mut tensors = folder_tensors(&config, &weights(&config, 1));
    change(&mut tensors);
    write_folder(
        folder.path(),
        &config_json(&config),
        &tensors,
        FloatType::F32,
    );
    Checkpoint::open(folder.path()).unwrap_err()
}

#[test]
fn tensors_that_are_missing_misshapen_or_too_many_are_named() {
    let error = with_tensors(|tensors| {
        tensors.retain(|(name, ..)| name != "model.layers.1.mlp.up_proj.weight");
    });
    assert_eq!(
        error.to_string(),
        "tensor model.layers.1.mlp.up_proj.weight is missing, expected [64, 32]"
    );
    let error = with_tensors(|tensors| tensors.retain(|(name, ..)| name != "model.norm.weight"));
    assert_eq!(
        error.to_string(),
        "tensor model.norm.weight is missing, expected [32]"
    );
    let error = with_tensors(|tensors| {
        let (_, shape, _) = tensors
            .iter_mut()
            .find(|(name, ..)| name.ends_with("0.self_attn.k_proj.weight"))
            .unwrap();
        shape.reverse();
    });
    assert_eq!(
        error.to_string(),
        "tensor model.layers.0.self_attn.k_proj.weight has shape [32, 16], expected [16, 32]"
    );
    let bias = "model.layers.0.self_attn.o_proj.bias";
    let error = with_tensors(|tensors| tensors.push((bias.into(), vec![32], vec![0.0; 32])));
    assert!(
        matches!(&error, ModelError::ExtraTensor { name, .. } if name == bias),
        "{error}"
    );
    assert!(error.hint().is_some());
}

#[test]
fn what_follows_from_the_config_may_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        tied_embeddings: true,
        ..shape(Family::Llama)
    };
    let mut tensors = folder_tensors(&config, &weights(&config, 1));
    tensors.push(("lm_head.weight".into(), vec![48, 32], vec![0.0; 48 * 32]));
    tensors.push((
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        vec![4],
        vec![0.0; 4],
    ));
    write_folder(
        folder.path(),
        &config_json(&config),
        &tensors,
        FloatType::F32,
    );
    assert!(Checkpoint::open(folder.path()).is_ok());
}

#[test]
fn paths_that_are_no_model_say_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| {
        let error = Checkpoint::open(path).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        error.to_string()
    };
    assert!(error(&folder.path().join("nothing")).contains("cannot read"));
    assert!(error(folder.path()).contains("a folder without config.json"));
    std::fs::write(
        folder.path().join("config.json"),
        config_json(&shape(Family::Llama)).to_string(),
    )
    .unwrap();
    assert!(error(folder.path()).contains("no weights"));
    std::fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(error(folder.path()).contains("only *.bin"));
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "these are no weights").unwrap();
    assert!(error(&text).contains("magic"));
}

#[test]
fn an_index_reaches_no_file_outside_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    std::fs::write(
        folder.path().join("config.json"),
        config_json(&config).to_string(),
    )
    .unwrap();
    for name in [
        "../other.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "c:\\x.safetensors",
        "config.json",
    ] {
        let index = json!({"weight_map": {"model.norm.weight": name}});
        std::fs::write(
            folder.path().join("model.safetensors.index.json"),
            index.to_string(),
        )
        .unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(
            matches!(error, ModelError::BadField { .. }),
            "{name}: {error}"
        );
    }
    let index = json!({"weight_map": {"model.norm.weight": "gone.safetensors"}});
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    assert!(matches!(
        Checkpoint::open(folder.path()),
        Err(ModelError::Io { .. })
    ));
}

#[test]
fn types_that_are_not_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    write_folder(folder.path(), &config_json(&config), &[], FloatType::F32);
    let file = safetensors(
        &folder_tensors(&config, &weights(&config, 1)),
        FloatType::F32,
    );
    // Same length, so the header stays where it is; I32 has the size of F32.
    let text = String::from_utf8_lossy(&file[..file.len() / 2]).into_owned();
    assert!(text.contains("\"F32\""));
    let mut changed = file;
    while let Some(at) = changed.windows(5).position(|window| window == b"\"F32\"") {
        changed[at..at + 5].copy_from_slice(b"\"I32\"");
    }
    std::fs::write(folder.path().join("model.safetensors"), changed).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("model.embed_tokens.weight")
            && error.contains("I32")
            && error.contains("BF16"),
        "{error}"
    );
}

#[test]
fn gguf_files_name_what_is_not_supported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let config = shape(Family::Llama);
    let file = gguf(&config, &weights(&config, 1));
    let refused = |key: &str, value: Meta| {
        let mut file = file.clone();
        file.set(key, value).write(&path);
        let error = Checkpoint::open(&path).expect_err(key);
        assert!(error.hint().is_some());
        error.to_string()
    };
    for (key, value, words) in [
        (
            "general.architecture",
            Meta::Text("gemma2".into()),
            &["architecture", "gemma2"][..],
        ),
        (
            "llama.expert_count",
            Meta::U32(8),
            &["mixture of experts", "8"],
        ),
        (
            "llama.attention.sliding_window",
            Meta::U32(128),
            &["sliding window", "128"],
        ),
        (
            "llama.rope.scaling.type",
            Meta::Text("yarn".into()),
            &["rope scaling type", "yarn"],
        ),
        (
            "llama.rope.dimension_count",
            Meta::U32(4),
            &["partial rotation", "4"],
        ),
        (
            "llama.attention.value_length",
            Meta::U32(4),
            &["head size of V"],
        ),
        (
            "llama.attention.head_count_kv",
            Meta::I32s(vec![2, 1]),
            &["layer-dependent shape"],
        ),
        (
            "llama.attn_logit_softcapping",
            Meta::F32(30.0),
            &["attn_logit_softcapping", "30"],
        ),
        (
            "llama.block_count",
            Meta::Text("two".into()),
            &["llama.block_count", "two"],
        ),
        (
            "llama.rope.freq_base",
            Meta::F32(f32::NAN),
            &["llama.rope.freq_base", "NaN", "finite"],
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Meta::F32(f32::INFINITY),
            &["rms_epsilon", "inf"],
        ),
        (
            "llama.block_count",
            Meta::U32(3),
            &[
                "model.layers.2.input_layernorm.weight (blk.2.attn_norm.weight)",
                "missing",
                "[32]",
            ],
        ),
        (
            "llama.feed_forward_length",
            Meta::U32(96),
            &["ffn_gate", "[64, 32]", "[96, 32]"],
        ),
        (
            "general.alignment",
            Meta::U32(0),
            &["general.alignment", "power of two"],
        ),
        (
            "general.alignment",
            Meta::U32(24),
            &["general.alignment", "24"],
        ),
    ] {
        let message = refused(key, value);
        for word in words {
            assert!(message.contains(word), "{key}: {message:?} lacks {word:?}");
        }
    }
    let mut absent = file.clone();
    absent.remove("llama.embedding_length").write(&path);
    assert!(
        Checkpoint::open(&path)
            .unwrap_err()
            .to_string()
            .contains("llama.embedding_length is absent")
    );

    let mut extra = file.clone();
    extra.tensors.push(GgufTensor {
        name: "blk.0.attn_q_norm.weight".into(),
        shape: vec![8],
        kind: 0,
        bytes: vec![0; 32],
    });
    extra.write(&path);
    assert!(matches!(
        Checkpoint::open(&path),
        Err(ModelError::ExtraTensor { .. })
    ));

    for (number, name) in [
        (10, "Q2_K"),
        (11, "Q3_K"),
        (20, "IQ4_NL"),
        (39, "MXFP4"),
        (99, "number 99"),
    ] {
        let mut other = file.clone();
        other.tensors[3].kind = number;
        other.write(&path);
        let message = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(
            message.contains(name) && message.contains("Q4_K"),
            "{message}"
        );
    }
}
