//! A vocabulary as GGUF metadata and SentencePiece models carry it: tokens with their types, and the few
//! flags around them.
//!
//! It knows what is common to both kinds: which tokens are matched before tokenization, and which are put
//! around a text. How text is split and merged is the business of its two neighbors.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{ModelError, Result};

/// More tokens than any vocabulary has.
const MAX_TOKENS: usize = 1 << 22;

/// What a token is, numbered as in SentencePiece and GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenType {
    Normal,
    Unknown,
    /// Matched in text, never shown.
    Control,
    /// Matched in text, shown.
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// How text becomes tokens.
#[derive(Debug, Clone)]
pub(crate) enum TokenKind {
    /// Byte-level BPE with merges, split by a named rule.
    ByteLevel {
        /// `tokenizer.ggml.pre`.
        pre: String,
    },
    /// SentencePiece BPE: merges follow from the scores.
    SentencePiece { scores: Vec<f32> },
}

/// Tokens, types and flags.
#[derive(Debug, Clone)]
pub(crate) struct Vocabulary {
    pub(crate) kind: TokenKind,
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<TokenType>,
    /// `left right` pairs, best first; empty for SentencePiece.
    pub(crate) merges: Vec<String>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
    pub(crate) add_space_prefix: bool,
}

impl Vocabulary {
    pub(crate) fn check(&self) -> Result<()> {
        if self.tokens.is_empty() || self.tokens.len() > MAX_TOKENS {
            return Err(ModelError::tokenizer(
                "number of tokens",
                format!("1 to {MAX_TOKENS}"),
                self.tokens.len().to_string(),
            ));
        }
        if self.types.len() != self.tokens.len() {
            let expected = format!("{}, one for each token", self.tokens.len());
            return Err(ModelError::tokenizer(
                "number of token types",
                expected,
                self.types.len().to_string(),
            ));
        }
        let mut first = BTreeMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(earlier) = first.insert(token, id) {
                let got = format!("{token:?}, which is token {earlier} already");
                return Err(ModelError::tokenizer(
                    format!("token {id}"),
                    "a text of its own",
                    got,
                ));
            }
        }
        for (what, id, needed) in [
            ("first token", self.bos, self.add_bos),
            ("last token", self.eos, self.add_eos),
        ] {
            match id {
                Some(id) if self.token(id).is_none() => {
                    return Err(ModelError::tokenizer(
                        what,
                        format!("below {}", self.tokens.len()),
                        id.to_string(),
                    ));
                }
                None if needed => {
                    return Err(ModelError::tokenizer(
                        what,
                        "a token id, since it is to be added",
                        "absent",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A score for a token that was appended: added tokens are matched as a whole and take part in no merge.
    pub(crate) fn push_score(&mut self) {
        if let TokenKind::SentencePiece { scores } = &mut self.kind {
            scores.push(0.0);
        }
    }

    fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    pub(crate) fn named(&self, id: Option<u32>) -> Option<&str> {
        id.and_then(|id| self.token(id))
    }

    pub(crate) fn vocab(&self) -> Map<String, Value> {
        self.tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.clone(), json!(id)))
            .collect()
    }

    /// Tokens that are matched in the text before anything else.
    pub(crate) fn added_tokens(&self) -> Vec<Value> {
        let ends = [self.bos, self.eos];
        let tokens = self.tokens.iter().zip(&self.types).enumerate();
        tokens
            .filter_map(|(id, (token, &kind))| {
                let is_end = ends.iter().flatten().any(|&end| end as usize == id);
                let special = is_end || matches!(kind, TokenType::Control | TokenType::Unknown);
                let added = (special || kind == TokenType::UserDefined) && !token.is_empty();
                added.then(|| {
                    json!({
                        "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": special,
                    })
                })
            })
            .collect()
    }

    /// Puts the first and the last token around a text, where the model wants them.
    pub(crate) fn post_processor(&self) -> Value {
        let bos = self
            .bos
            .filter(|_| self.add_bos)
            .and_then(|id| Some((id, self.token(id)?)));
        let eos = self
            .eos
            .filter(|_| self.add_eos)
            .and_then(|id| Some((id, self.token(id)?)));
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let sequence = |name: &str, type_id: u32| {
            let token = |end: Option<(u32, &str)>| {
                end.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": type_id}}))
            };
            let text = json!({"Sequence": {"id": name, "type_id": type_id}});
            [token(bos), Some(text), token(eos)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        let specials: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|(id, token)| {
                (
                    token.to_owned(),
                    json!({"id": token, "ids": [id], "tokens": [token]}),
                )
            })
            .collect();
        let pair = [sequence("A", 0), sequence("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": pair,
            "special_tokens": specials,
        })
    }

    pub(crate) fn tokenizer_config(&self) -> Map<String, Value> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("add_bos_token".into(), self.add_bos.into());
        config.insert("add_eos_token".into(), self.add_eos.into());
        let named = [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ];
        for (name, id) in named {
            if let Some(token) = self.named(id) {
                config.insert(name.into(), token.into());
            }
        }
        config
    }
}
