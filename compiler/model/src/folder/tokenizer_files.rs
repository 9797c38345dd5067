//! The tokenizer and the chat template of a checkpoint folder.
//!
//! tokenizer.json where there is one, else SentencePiece's tokenizer.model; special tokens and flags from
//! `tokenizer_config.json`, what is missing there from `special_tokens_map.json`; the template from
//! `chat_template.jinja` or `tokenizer_config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::config::Fields;
use crate::file::{MAX_TEXT_BYTES, SourceFile, read_json, read_text};
use crate::tokenizer::{ChatTokenizer, TokenType, Vocabulary, from_vocabulary, sentencepiece};
use crate::{ModelError, Result};

/// Loads the tokenizer, or `None` where the folder has none.
pub(crate) fn read(folder: &Path, eos_ids: Vec<u32>) -> Result<Option<ChatTokenizer>> {
    let (json, model) = (
        folder.join("tokenizer.json"),
        folder.join("tokenizer.model"),
    );
    let has_json = json.is_file();
    if !has_json && !model.is_file() {
        return Ok(None);
    }
    let mut config = config(folder)?;
    match template(folder, &config)? {
        Some(template) => config.insert("chat_template".into(), template.into()),
        None => config.remove("chat_template"),
    };
    if has_json {
        return ChatTokenizer::new(read_json(&json)?, config, eos_ids).map(Some);
    }
    let file = SourceFile::open(&model)?;
    if file.len() > MAX_TEXT_BYTES {
        return Err(ModelError::TooLarge {
            path: model,
            got: file.len(),
            limit: MAX_TEXT_BYTES,
        });
    }
    let bytes = file.read(0, usize::try_from(file.len()).unwrap_or(0))?;
    let mut vocabulary = sentencepiece::read(&model, &bytes)?;
    complete(&mut vocabulary, &config);
    from_vocabulary(
        &vocabulary,
        config.get("chat_template").and_then(Value::as_str),
        eos_ids,
    )
    .map(Some)
}

/// `tokenizer_config.json` with the special tokens it lacks.
fn config(folder: &Path) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let json = read_json(&path)?;
        Fields::new(&path, &json)?;
        if let Value::Object(map) = json {
            for (key, value) in map {
                // Only special tokens are looked for in the second file, and only where the first has none.
                if name == "tokenizer_config.json"
                    || (key.ends_with("_token") && config.get(&key).is_none_or(Value::is_null))
                {
                    config.insert(key, value);
                }
            }
        }
    }
    Ok(config)
}

/// `chat_template.jinja`, or the text, or the template called `default` (or the only one) of a list.
fn template(folder: &Path, config: &Map<String, Value>) -> Result<Option<String>> {
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        return read_text(&file).map(Some);
    }
    let text = |entry: &Value| {
        entry
            .get("template")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned)
    };
    Ok(match config.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => {
            let named = list
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            named
                .or(list.first().filter(|_| list.len() == 1))
                .and_then(text)
        }
        _ => None,
    })
}

/// Flags and added tokens that a SentencePiece model's folder keeps beside it.
fn complete(vocabulary: &mut Vocabulary, config: &Map<String, Value>) {
    let flag = |name: &str| config.get(name).and_then(Value::as_bool);
    vocabulary.add_bos = flag("add_bos_token").unwrap_or(vocabulary.add_bos);
    vocabulary.add_eos = flag("add_eos_token").unwrap_or(vocabulary.add_eos);
    let added = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object);
    let mut added: Vec<(usize, &Value)> = added
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token)))
        .collect();
    added.sort_unstable_by_key(|&(id, _)| id);
    for (id, token) in added {
        let special = token
            .get("special")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        // Ids go on where the pieces end; a gap would shift every later token.
        if let Some(content) = token
            .get("content")
            .and_then(Value::as_str)
            .filter(|_| id == vocabulary.tokens.len())
        {
            vocabulary.tokens.push(content.to_owned());
            vocabulary.types.push(if special {
                TokenType::Control
            } else {
                TokenType::UserDefined
            });
            vocabulary.push_score();
        }
    }
    let id = |name: &str| {
        let token = config.get(name)?;
        let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
        vocabulary
            .tokens
            .iter()
            .position(|other| other == text)
            .and_then(|id| u32::try_from(id).ok())
    };
    let (bos, eos, padding) = (id("bos_token"), id("eos_token"), id("pad_token"));
    vocabulary.bos = bos.or(vocabulary.bos);
    vocabulary.eos = eos.or(vocabulary.eos);
    vocabulary.padding = padding.or(vocabulary.padding);
}
