//! Makes a published tokenizer.json mean the same to the `tokenizers` crate and to the npm package.
//!
//! The two differ where rules are built in rather than written out: the npm package's `Digits` knows ASCII
//! digits only, its `ByteLevel` splits at JavaScript's idea of white space, and case-insensitive groups fold
//! differently. Written out as explicit splits they agree. Characters that the vocabulary has no bytes for
//! (some control characters in SmolLM2's) are dropped by both, but before merging in one and after it in the
//! other: here they are taken out, and part what stands around them. Truncation and padding, which a tokenizer.json may
//! switch on, are switched off: a prompt is encoded as it is.

use serde_json::{Map, Value};

use super::bpe::{byte_level, digit_split, gpt2_split};

/// The contractions of Qwen2's and Llama 3's rules, and the same with their cases (and the long s) spelled out.
const CONTRACTIONS: (&str, &str) = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?:'[sS\u{17f}]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
);

pub(super) fn tokenizer_json(mut json: Value) -> Value {
    let dropped = json.get("model").and_then(characters_without_bytes);
    if let Some(map) = json.as_object_mut() {
        map.insert("truncation".into(), Value::Null);
        map.insert("padding".into(), Value::Null);
        if let Some(pre) = map.get_mut("pre_tokenizer").filter(|pre| !pre.is_null()) {
            let mut steps = Vec::new();
            flatten(std::mem::take(pre), &mut steps);
            if let Some(at) = steps
                .iter()
                .position(|step| kind(step) == Some("ByteLevel"))
                && let Some(dropped) = &dropped
            {
                steps.insert(at, serde_json::json!({
                    "type": "Split", "pattern": {"Regex": dropped}, "behavior": "Removed", "invert": false,
                }));
            }
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

fn kind(step: &Value) -> Option<&str> {
    step.get("type").and_then(Value::as_str)
}

/// A regular expression for the characters that a byte-level vocabulary cannot write, if there are any: those
/// whose first (or only) byte has no token.
fn characters_without_bytes(model: &Value) -> Option<String> {
    let vocab = model.get("vocab").and_then(Value::as_object)?;
    let has_unknown = model.get("unk_token").is_some_and(|token| !token.is_null());
    if kind(model) != Some("BPE") || has_unknown {
        return None;
    }
    let mut ranges = String::new();
    for byte in 0..=0xf4 {
        if vocab.contains_key(byte_character(byte).encode_utf8(&mut [0; 4]) as &str) {
            continue;
        }
        let code = u32::from(byte);
        let (first, last) = match byte {
            0..=0x7f => (code, code),
            0xc2..=0xdf => ((code & 0x1f) << 6, (code & 0x1f) << 6 | 0x3f),
            0xe0 => (0x800, 0xfff),
            0xed => (0xd000, 0xd7ff),
            0xe1..=0xef => ((code & 0xf) << 12, (code & 0xf) << 12 | 0xfff),
            0xf0 => (0x1_0000, 0x3_ffff),
            0xf1..=0xf3 => ((code & 7) << 18, (code & 7) << 18 | 0x3_ffff),
            0xf4 => (0x10_0000, 0x10_ffff),
            // Bytes inside of characters, and two that no text has.
            _ => continue,
        };
        ranges.push_str(&format!("\\x{{{first:x}}}-\\x{{{last:x}}}"));
    }
    (!ranges.is_empty()).then(|| format!("[{ranges}]"))
}

/// The printable character that stands for a byte in byte-level vocabularies.
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|&other| !printable(other)).count();
    u32::try_from(earlier)
        .ok()
        .and_then(|earlier| char::from_u32(256 + earlier))
        .unwrap_or('\u{fffd}')
}

fn flatten(step: Value, steps: &mut Vec<Value>) {
    let is = |name: &str, default: bool| step.get(name).and_then(Value::as_bool).unwrap_or(default);
    match kind(&step) {
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
