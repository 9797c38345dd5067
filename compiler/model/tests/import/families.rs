//! Every family from a folder: shapes, defaults, rope fields old and new, files one and many.

use std::path::{Path, PathBuf};

use moa_format::{Family, ModelConfig, RopeScaling};
use moa_model::{Checkpoint, ModelError, SourceFormat, SourceType};
use serde_json::json;

use crate::making::{
    FloatType, config_json, folder_tensors, safetensors, shape, weights, write_folder,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

/// Writes a model of this shape, opens it and compares everything.
fn round_trip(config: &ModelConfig, json: &serde_json::Value) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let weights = weights(config, 7);
    write_folder(
        folder.path(),
        json,
        &folder_tensors(config, &weights),
        FloatType::F32,
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config(), config);
    for spec in moa_format::tensors(config) {
        let tensor = checkpoint.tensor(&spec.name).unwrap();
        assert_eq!(
            tensor.shape(),
            [spec.rows as usize, spec.cols as usize],
            "{}",
            spec.name
        );
        assert_eq!(
            tensor.to_f32().unwrap(),
            weights[&spec.name],
            "{}",
            spec.name
        );
    }
    checkpoint
}

#[test]
fn each_family_comes_back_as_it_was_written() {
    for family in [Family::Llama, Family::Mistral, Family::Qwen2] {
        for tied_embeddings in [false, true] {
            let config = ModelConfig {
                tied_embeddings,
                ..shape(family)
            };
            let checkpoint = round_trip(&config, &config_json(&config));
            assert_eq!(checkpoint.format(), SourceFormat::Folder);
            assert!(checkpoint.tokenizer().is_none());
            assert!(
                matches!(
                    checkpoint.tensor("lm_head.weight"),
                    Err(ModelError::UnknownTensor { .. })
                ) == tied_embeddings
            );
        }
    }
}

#[test]
fn silent_fields_take_the_families_defaults() {
    // Llama 1: as many KV heads as heads, no head_dim, no rope_theta, the old length field, the old spelling.
    let config = ModelConfig {
        kv_heads: 4,
        max_context: 2048,
        rms_norm_eps: 1e-6,
        ..shape(Family::Llama)
    };
    let mut json = config_json(&config);
    let map = json.as_object_mut().unwrap();
    for gone in [
        "num_key_value_heads",
        "head_dim",
        "rope_theta",
        "max_position_embeddings",
        "tie_word_embeddings",
        "rms_norm_eps",
    ] {
        map.remove(gone);
    }
    map.insert("max_sequence_length".into(), 2048.into());
    map.insert("architectures".into(), json!(["LLaMAForCausalLM"]));
    round_trip(&config, &json);
    // No architectures at all: model_type says it.
    json.as_object_mut().unwrap().remove("architectures");
    round_trip(&config, &json);
}

#[test]
fn rope_fields_old_and_new_mean_the_same() {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 128,
    };
    let fields = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
    });
    let with = |base: &serde_json::Value, key: &str, extra: serde_json::Value| {
        let mut object = base.clone();
        object.as_object_mut().unwrap().insert(key.into(), extra);
        object
    };
    let mut config = shape(Family::Llama);
    config.rope.theta = 500_000.0;
    config.rope.scaling = Some(llama3);
    for old_key in ["type", "rope_type"] {
        let mut json = config_json(&config);
        json["rope_scaling"] = with(&fields, old_key, "llama3".into());
        round_trip(&config, &json);
    }
    let mut json = config_json(&config);
    json.as_object_mut().unwrap().remove("rope_theta");
    json["rope_parameters"] = with(
        &with(&fields, "rope_type", "llama3".into()),
        "rope_theta",
        json!(500_000.0),
    );
    round_trip(&config, &json);

    config.rope.scaling = Some(RopeScaling::Linear { factor: 4.0 });
    let mut json = config_json(&config);
    json["rope_scaling"] = json!({"type": "linear", "factor": 4});
    round_trip(&config, &json);

    config.rope.scaling = None;
    let mut json = config_json(&config);
    json["rope_scaling"] = json!(null);
    json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 500_000.0});
    round_trip(&config, &json);
}

#[test]
fn windows_that_hide_nothing_are_accepted() {
    let config = shape(Family::Mistral);
    for window in [json!(null), json!(512), json!(4096)] {
        let mut json = config_json(&config);
        json["sliding_window"] = window;
        round_trip(&config, &json);
    }
    // Qwen2 names a window that it does not use.
    let config = shape(Family::Qwen2);
    let mut json = config_json(&config);
    json["sliding_window"] = json!(64);
    json["use_sliding_window"] = json!(false);
    round_trip(&config, &json);
    json["layer_types"] = json!(["full_attention", "full_attention"]);
    round_trip(&config, &json);
}

#[test]
fn end_tokens_are_gathered_generation_config_first() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    write_folder(
        folder.path(),
        &config_json(&config),
        &folder_tensors(&config, &weights(&config, 1)),
        FloatType::F32,
    );
    std::fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": [9, 2, 11]}"#,
    )
    .unwrap();
    assert_eq!(
        Checkpoint::open(folder.path()).unwrap().config().eos,
        [9, 2, 11]
    );
}

#[test]
fn weights_may_lie_in_several_files_with_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Qwen2);
    let weights = weights(&config, 3);
    let tensors = folder_tensors(&config, &weights);
    std::fs::write(
        folder.path().join("config.json"),
        config_json(&config).to_string(),
    )
    .unwrap();
    let mut map = serde_json::Map::new();
    for (number, part) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let file = format!("model-{number}.safetensors");
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
        std::fs::write(folder.path().join(file), safetensors(part, FloatType::F32)).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (name, values) in &weights {
        assert_eq!(&checkpoint.tensor(name).unwrap().to_f32().unwrap(), values);
    }
    // Without the index it is anybody's guess which file holds what.
    std::fs::remove_file(index).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("2 *.safetensors and no model.safetensors.index.json"),
        "{error}"
    );
}

#[test]
fn half_floats_keep_their_type_and_rows_can_be_read_alone() {
    let config = shape(Family::Llama);
    let weights = weights(&config, 5);
    for (float, source_type) in [
        (FloatType::F16, SourceType::F16),
        (FloatType::Bf16, SourceType::Bf16),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(
            folder.path(),
            &config_json(&config),
            &folder_tensors(&config, &weights),
            float,
        );
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let name = "model.embed_tokens.weight";
        assert_eq!(checkpoint.source_type(name).unwrap(), source_type);
        let whole = checkpoint.tensor(name).unwrap();
        assert_eq!(whole.bytes().len(), 48 * 32 * 2);
        let rows = checkpoint.tensor_rows(name, 10..13).unwrap();
        assert_eq!(rows.shape(), [3, 32]);
        assert_eq!(rows.bytes(), &whole.bytes()[10 * 64..13 * 64]);
        for (&got, &wrote) in whole.to_f32().unwrap().iter().zip(&weights[name]) {
            assert!((got - wrote).abs() <= wrote.abs() / 128.0, "{got} {wrote}");
        }
        assert!(matches!(
            checkpoint.tensor_rows(name, 40..49),
            Err(ModelError::RowsOutOfRange { rows: 48, .. })
        ));
    }
}

#[test]
fn the_oracles_models_open() {
    let llama = Checkpoint::open(fixture("tiny-llama")).unwrap();
    let config = llama.config();
    assert_eq!(
        (
            config.layers,
            config.heads,
            config.kv_heads,
            config.head_dim
        ),
        (3, 6, 2, 16)
    );
    assert_eq!(
        (
            config.vocab_size,
            config.max_context,
            config.tied_embeddings
        ),
        (320, 2048, true)
    );
    assert_eq!((config.bos, &config.eos[..]), (Some(0), &[1][..]));
    assert_eq!(llama.name(), "tiny-llama");

    let qwen2 = Checkpoint::open(fixture("tiny-qwen2")).unwrap();
    let config = qwen2.config();
    assert_eq!(
        (config.family, config.qkv_bias, config.tied_embeddings),
        (Family::Qwen2, true, false)
    );
    assert_eq!(
        (
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.rope.theta
        ),
        (7, 1, 16, 1e6)
    );
    assert_eq!(
        qwen2
            .tensor("model.layers.1.self_attn.k_proj.bias")
            .unwrap()
            .shape(),
        [1, 16]
    );

    let llama3 = Checkpoint::open(fixture("tiny-llama3")).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    assert_eq!(llama3.config().rope.scaling, Some(scaling));
    assert_eq!(
        (llama3.config().hidden_dim, llama3.config().head_dim),
        (112, 32)
    );
}

#[test]
fn the_hash_follows_every_file_that_matters() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    let tensors = folder_tensors(&config, &weights(&config, 1));
    write_folder(
        folder.path(),
        &config_json(&config),
        &tensors,
        FloatType::F32,
    );
    let hash = || {
        Checkpoint::open(folder.path())
            .unwrap()
            .source_hash()
            .unwrap()
    };
    let first = hash();
    assert_eq!(first.len(), 64);
    assert_eq!(first, hash());
    std::fs::write(
        folder.path().join("README.md"),
        "---\nlicense: \"mit\"\n---\ntext\n",
    )
    .unwrap();
    assert_eq!(first, hash(), "a README changes nothing");
    assert_eq!(
        Checkpoint::open(folder.path()).unwrap().license(),
        Some("mit")
    );
    std::fs::write(folder.path().join("generation_config.json"), "{}").unwrap();
    let second = hash();
    assert_ne!(first, second);
    let mut bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    assert_ne!(second, hash());
}
