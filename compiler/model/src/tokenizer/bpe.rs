//! Byte-level BPE: GGUF's `gpt2` tokenizers, told apart by the rule that splits text before merging.
//!
//! The rules are those of the published tokenizer.json files, written as explicit splits: both readers treat
//! those alike, which cannot be said of their built-in digit and byte-level rules.

use serde_json::{Value, json};

use super::{Parts, Vocabulary};
use crate::{ModelError, Result};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";

/// What [`parts`] refuses with.
const RULES: &str = "smollm, qwen2, llama-bpe, gpt-2, default";

/// The regular expression of GPT-2's byte-level rule.
pub(super) fn gpt2_split() -> Value {
    split(GPT2)
}

/// Each digit by itself.
pub(super) fn digit_split(individual: bool) -> Value {
    if individual {
        split(DIGIT)
    } else {
        split(r"\p{N}+")
    }
}

/// Bytes to the printable characters that stand for them, without splitting.
pub(super) fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

pub(super) fn parts(vocabulary: &Vocabulary, pre: &str) -> Result<Parts> {
    // Names as llama.cpp knows them; those on one line split alike.
    let (normalizer, splits, ignore_merges) = match pre {
        "smollm" | "starcoder" | "refact" | "codeshell" => {
            (Value::Null, vec![split(DIGIT), split(GPT2)], false)
        }
        "qwen2" | "deepseek-r1-qwen" => (json!({"type": "NFC"}), vec![split(QWEN2)], false),
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, vec![split(LLAMA3)], true),
        "gpt-2" | "gpt2" | "olmo" => (Value::Null, vec![split(GPT2)], false),
        "default" => {
            let rules = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
            (Value::Null, rules.into_iter().map(split).collect(), false)
        }
        other => {
            return Err(ModelError::unsupported(
                "tokenizer split rule (tokenizer.ggml.pre)",
                other,
                RULES,
            ));
        }
    };
    let mut pre_tokenizers = splits;
    pre_tokenizers.push(byte_level());

    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        let pair = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let Some((left, right)) = pair else {
            return Err(ModelError::tokenizer(
                format!("merge {rank}"),
                "two tokens with a space between",
                format!("{merge:?}"),
            ));
        };
        merges.push(json!([left, right]));
    }
    Ok(Parts {
        normalizer,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": pre_tokenizers}),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": ignore_merges,
            "vocab": vocabulary.vocab(),
            "merges": merges,
        }),
    })
}
