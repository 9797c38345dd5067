//! Makes a published tokenizer.json mean the same to the `tokenizers` crate and to the npm package.
//!
//! The two differ where rules are built in rather than written out: the npm package's `Digits` knows ASCII
//! digits only, its `ByteLevel` splits at JavaScript's idea of white space, and case-insensitive groups fold
//! differently. Written out as explicit splits they agree. Truncation and padding, which a tokenizer.json may
//! switch on, are switched off: a prompt is encoded as it is.

use serde_json::{Map, Value};

use super::bpe::{byte_level, digit_split, gpt2_split};

/// The contractions of Qwen2's and Llama 3's rules, and the same with their cases (and the long s) spelled out.
const CONTRACTIONS: (&str, &str) = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?:'[sS\u{17f}]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
);

pub(super) fn tokenizer_json(mut json: Value) -> Value {
    if let Some(map) = json.as_object_mut() {
        map.insert("truncation".into(), Value::Null);
        map.insert("padding".into(), Value::Null);
        if let Some(pre) = map.get_mut("pre_tokenizer").filter(|pre| !pre.is_null()) {
            let mut steps = Vec::new();
            flatten(std::mem::take(pre), &mut steps);
            *pre = match steps.len() {
                1 => steps.remove(0),
                _ => serde_json::json!({"type": "Sequence", "pretokenizers": steps}),
            };
        }
    }
    json
}

/// Special tokens as plain texts (published files also write objects), and decoded text left as it is.
pub(super) fn tokenizer_config(mut config: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in &mut config {
        if name.ends_with("_token")
            && let Some(content) = value.get_mut("content")
        {
            *value = content.take();
        }
    }
    // The npm package removes spaces before punctuation unless told not to; the crate never does.
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    config
}

fn flatten(step: Value, steps: &mut Vec<Value>) {
    let is = |name: &str, default: bool| step.get(name).and_then(Value::as_bool).unwrap_or(default);
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let Some(Value::Array(inner)) = step.get("pretokenizers") else {
                return steps.push(step);
            };
            for inner in inner.clone() {
                flatten(inner, steps);
            }
        }
        Some("Digits") => steps.push(digit_split(is("individual_digits", false))),
        Some("ByteLevel") if is("use_regex", true) && !is("add_prefix_space", true) => {
            steps.extend([gpt2_split(), byte_level()]);
        }
        Some("Split") => {
            let mut step = step;
            if let Some(Value::String(regex)) = step.pointer_mut("/pattern/Regex") {
                *regex = regex.replace(CONTRACTIONS.0, CONTRACTIONS.1);
            }
            steps.push(step);
        }
        _ => steps.push(step),
    }
}
