//! The manifest: golden text, its seal, lies behind a good seal, and the plan files it vouches for.

use moa_format::{FormatError, Manifest, Plan, sha256_hex};
use serde_json::{Value, json};

use crate::fixture::bundle;

const GOLDEN: &str = include_str!("../golden/manifest.json");
const KEY: &str = "\"manifest_sha256\": \"";

/// `text` with the seal that it should have, worked out from docs/plan-format.md.
fn sealed(text: &str) -> String {
    let at = text.rfind(KEY).unwrap() + KEY.len();
    let zeros = format!("{}{}{}", &text[..at], "0".repeat(64), &text[at + 64..]);
    let seal = sha256_hex(zeros.as_bytes());
    format!("{}{seal}{}", &text[..at], &text[at + 64..])
}

/// `value` as a sealed manifest. Keys come out in alphabetical order, which changes nothing.
fn seal_value(value: &Value) -> String {
    let mut value = value.clone();
    let object = value.as_object_mut().unwrap();
    object.remove("manifest_sha256");
    let mut text = serde_json::to_string(&value).unwrap();
    text.pop();
    text += &format!(",{KEY}{}\"}}", "0".repeat(64));
    sealed(&text)
}

#[test]
fn json_is_as_reviewed_and_reads_back() {
    let (manifest, _) = bundle();
    let text = manifest.to_json().unwrap();
    if text != GOLDEN {
        let path = std::env::temp_dir().join("moa-format-manifest.json");
        std::fs::write(&path, &text).unwrap();
        panic!(
            "the manifest is not tests/golden/manifest.json; review {}",
            path.display()
        );
    }
    assert_eq!(Manifest::from_json(&text).unwrap(), manifest);
    assert_eq!(sealed(&text), text, "the seal is the documented one");
}

#[test]
fn every_file_is_vouched_for() {
    let (manifest, files) = bundle();
    let names: Vec<&str> = manifest.file_names().collect();
    assert_eq!(names.len(), files.len());
    for name in names {
        assert!(files.contains_key(name), "{name}");
    }
    let entry = manifest.plan("half").unwrap();
    let plan = manifest.open_plan(entry, &files[&entry.file]).unwrap();
    assert_eq!(plan, crate::fixture::plan());
    for shard in &manifest.weights.shards {
        shard.check_bytes(&files[&shard.file]).unwrap();
    }
    for entry in &manifest.files {
        let bytes = &files[&entry.file];
        entry.check_bytes(bytes).unwrap();
        let mut damaged = bytes.clone();
        damaged[0] ^= 1;
        assert!(entry.check_bytes(&damaged).is_err());
        assert!(entry.check_bytes(&bytes[1..]).is_err());
    }
    assert!(manifest.tensor("model.norm.weight").is_some());
    assert!(manifest.tensor("lm_head.weight").is_none());
    assert_eq!(
        manifest.weight_bytes(),
        manifest
            .weights
            .shards
            .iter()
            .map(|s| u64::from(s.bytes))
            .sum::<u64>()
    );
}

#[test]
fn densities_and_bytes_are_those_of_the_plan() {
    let (manifest, _) = bundle();
    let entry = manifest.plan("half").unwrap();
    assert_eq!(
        entry.at.iter().map(|at| at.context).collect::<Vec<_>>(),
        [1024, 2048, 3000]
    );
    // At 2048: spans 1024, 1536, 129, 512.
    let at = entry.at(2048).unwrap();
    let mean: f64 = [1024.0, 1536.0, 129.0, 512.0].iter().sum::<f64>() / 4.0 / 2048.0;
    assert!((at.kv_density - mean).abs() < 1e-12);
    // Slots: each span and 64 of slack; K and V of 16 channels in f16.
    assert_eq!(at.cache_bytes, (1024 + 1536 + 129 + 512 + 4 * 64) * 64);
    // A chunk of 256 tokens for the 2 KV heads of one layer.
    assert_eq!(at.scratch_bytes, 256 * 2 * 64);
    assert_eq!(at.dense_bytes, 4 * 2048 * 64);
    assert_eq!(at.kv_bytes(), at.cache_bytes + at.scratch_bytes);
    assert!(at.attention_density > mean && at.attention_density < 1.0);
    assert!(entry.at(4096).is_none());
}

#[test]
fn every_changed_byte_is_noticed() {
    let bytes = GOLDEN.as_bytes();
    Manifest::from_json(bytes).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        for bit in 0..8 {
            damaged[at] = bytes[at] ^ (1 << bit);
            assert!(Manifest::from_json(&damaged).is_err(), "byte {at}");
        }
        if at % 37 == 0 {
            assert!(Manifest::from_json(&bytes[..at]).is_err(), "cut at {at}");
            let spaced = [&bytes[..at], b" ", &bytes[at..]].concat();
            assert!(Manifest::from_json(&spaced).is_err(), "space at {at}");
        }
    }
}

/// Every number and string in `value`, by JSON pointer.
fn leaves(value: &Value, pointer: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                leaves(value, &format!("{pointer}/{key}"), out);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                leaves(value, &format!("{pointer}/{index}"), out);
            }
        }
        _ => out.push(pointer.to_owned()),
    }
}

/// Behind a good seal any value may be anything. Nothing panics, and whatever decides where bytes lie or what a
/// plan costs is noticed, by the manifest's check or when the plan is opened.
#[test]
fn lies_behind_a_good_seal_are_noticed() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let (_, files) = bundle();
    assert!(Manifest::from_json(seal_value(&golden)).is_ok());
    let mut pointers = Vec::new();
    leaves(&golden, "", &mut pointers);
    // These do not place bytes, or hold sums of files that this crate does not see here.
    let free = |pointer: &str| {
        ["/name", "/provenance", "/files", "/model"]
            .iter()
            .any(|prefix| pointer.starts_with(prefix))
            || ["/max_error", "/source_dtype", "/manifest_sha256"]
                .iter()
                .any(|suffix| pointer.ends_with(suffix))
            || pointer.contains("/chunk_sha256/")
    };
    let values = [
        json!(0),
        json!(1),
        json!(-1),
        json!(0.5),
        json!(4),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("half"),
        json!("../x"),
        json!(null),
        json!([]),
        json!({}),
    ];
    let mut tried = 0;
    for pointer in &pointers {
        for value in &values {
            let mut lying = golden.clone();
            let place = lying.pointer_mut(pointer).unwrap();
            if place == value {
                continue;
            }
            *place = value.clone();
            if pointer == "/manifest_sha256" {
                continue;
            }
            let opened = Manifest::from_json(seal_value(&lying)).and_then(|manifest| {
                let entry = manifest.plan(&manifest.default_plan)?;
                let bytes = files.get(&entry.file).cloned().unwrap_or_default();
                manifest.open_plan(entry, &bytes)
            });
            assert!(
                opened.is_err() || free(pointer),
                "{pointer} = {value} was accepted"
            );
            tried += 1;
        }
    }
    assert!(tried > 3000, "{tried}");
}

#[test]
fn a_wrong_shape_of_the_model_is_noticed() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    for field in [
        "layers",
        "hidden_dim",
        "ffn_dim",
        "heads",
        "kv_heads",
        "head_dim",
        "vocab_size",
        "max_context",
    ] {
        for value in [0u64, 1, 3, 6, 128, 1 << 20, u64::from(u32::MAX), 1 << 40] {
            let mut lying = golden.clone();
            lying["model"][field] = json!(value);
            assert!(
                Manifest::from_json(seal_value(&lying)).is_err(),
                "{field} {value}"
            );
        }
    }
    for field in ["tied_embeddings", "qkv_bias"] {
        let mut lying = golden.clone();
        lying["model"][field] = json!(!lying["model"][field].as_bool().unwrap());
        assert!(Manifest::from_json(seal_value(&lying)).is_err(), "{field}");
    }
}

#[test]
fn newer_versions_are_refused_with_a_sentence() {
    let newer = GOLDEN.replace("\"schema_version\": 1", "\"schema_version\": 2");
    let error = Manifest::from_json(&newer).unwrap_err();
    assert!(matches!(
        error,
        FormatError::NewerVersion {
            got: 2,
            supported: 1,
            ..
        }
    ));
    assert!(error.to_string().contains("update"), "{error}");
    for text in ["", "{}", "[]", "null", "{\"schema_version\": 1}"] {
        assert!(Manifest::from_json(text).is_err(), "{text:?}");
    }
    let mut unknown: Value = serde_json::from_str(GOLDEN).unwrap();
    unknown["remark"] = json!("fields that change nothing may be added");
    assert!(Manifest::from_json(seal_value(&unknown)).is_ok());
}

#[test]
fn names_stay_in_their_folder_and_are_one_file_each() {
    let (manifest, _) = bundle();
    let file = |name: &str| {
        let mut manifest = manifest.clone();
        manifest.files[2].file = name.into();
        manifest.check()
    };
    assert!(file("LICENSE").is_ok());
    for name in [
        "../README.md",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "",
        ".",
        "..",
        ".hidden",
        "a b",
        "C:x",
        "manifest.json",
        "MANIFEST.JSON",
        "weights-000.bin",
        "plan-half.bin",
        "Tokenizer.json",
        "r\u{e9}sum\u{e9}",
        "a\0b",
    ] {
        assert!(file(name).is_err(), "{name:?}");
    }
    assert!(file(&"a".repeat(129)).is_err());
    let mut changed = manifest.clone();
    changed.default_plan = "none".into();
    let error = changed.check().unwrap_err().to_string();
    assert_eq!(error, "no plan is called \"none\"; this bundle has half");
    let mut changed = manifest.clone();
    changed.plans.push(changed.plans[0].clone());
    assert!(changed.check().is_err(), "a plan twice");
    let mut changed = manifest.clone();
    changed.tokenizer.as_mut().unwrap().config = "template.json".into();
    assert!(
        changed.check().is_err(),
        "a tokenizer file that is not listed"
    );
    let mut changed = manifest.clone();
    changed.plans.clear();
    assert!(changed.check().is_err(), "no plan at all");
    let mut changed = manifest.clone();
    changed.tokenizer = None;
    let text = changed.to_json().unwrap();
    assert_eq!(
        Manifest::from_json(text).unwrap(),
        changed,
        "token ids only"
    );
}

#[test]
fn another_plan_under_the_same_name_is_noticed() {
    let (manifest, files) = bundle();
    let entry = manifest.plan("half").unwrap();
    let mut other = crate::fixture::plan();
    other.rules[0].swap(0, 1);
    let bytes = other.to_bin().unwrap();
    assert!(matches!(
        manifest.open_plan(entry, &bytes),
        Err(FormatError::Damaged { .. })
    ));
    // Even where size and checksum were changed along, hash, name and figures were not.
    let mut entry = entry.clone();
    entry.sha256 = sha256_hex(&bytes);
    let error = manifest.open_plan(&entry, &bytes).unwrap_err().to_string();
    assert!(error.contains("hash"), "{error}");
    entry.hash = other.hash();
    assert!(
        manifest.open_plan(&entry, &bytes).is_ok(),
        "swapped heads cost the same"
    );
    entry.at[0].kv_density -= 1e-9;
    assert!(manifest.open_plan(&entry, &bytes).is_err());
    let mut renamed = Plan::from_bin(&files["plan-half.bin"]).unwrap();
    renamed.name = "full".into();
    let bytes = renamed.to_bin().unwrap();
    let mut entry = manifest.plans[0].clone();
    entry.sha256 = sha256_hex(&bytes);
    let error = manifest.open_plan(&entry, &bytes).unwrap_err().to_string();
    assert!(error.contains("name"), "{error}");
}
