//! The tokenizer and the chat template in a GGUF file's metadata.

use super::value::Metadata;
use crate::tokenizer::{ChatTokenizer, TokenKind, TokenType, Vocabulary, from_vocabulary};
use crate::{ModelError, Result};

const KINDS: &str = "gpt2 (byte-level BPE), llama (SentencePiece BPE)";

/// Builds the tokenizer, or `None` where the file carries none.
pub(crate) fn read(meta: &Metadata, eos_ids: Vec<u32>) -> Result<Option<ChatTokenizer>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let pre = meta.text(&key("pre"))?;
    let (kind, sentencepiece) = match meta.text(&key("model"))? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some("gpt2") => (
            TokenKind::ByteLevel {
                pre: pre.unwrap_or("default").to_owned(),
            },
            false,
        ),
        Some("llama") => {
            let key = key("scores");
            let scores = meta
                .floats(&key)?
                .ok_or_else(|| meta.bad(&key, "one number for each token", "absent"))?;
            (
                TokenKind::SentencePiece {
                    scores: scores.to_vec(),
                },
                true,
            )
        }
        Some(other) => return Err(ModelError::unsupported("tokenizer", other, KINDS)),
    };
    let tokens_key = key("tokens");
    let tokens = meta
        .texts(&tokens_key)?
        .ok_or_else(|| meta.bad(&tokens_key, "an array of texts", "absent"))?
        .to_vec();
    let types_key = key("token_type");
    let types = match meta.integers(&types_key)? {
        None => vec![TokenType::Normal; tokens.len()],
        Some(numbers) => numbers
            .into_iter()
            .map(|number| {
                TokenType::from_number(number)
                    .ok_or_else(|| meta.bad(&types_key, "numbers from 1 to 6", number.to_string()))
            })
            .collect::<Result<_>>()?,
    };
    let adds_bos = sentencepiece || matches!(pre, Some("llama-bpe" | "llama3" | "llama-v3"));
    let vocabulary = Vocabulary {
        kind,
        tokens,
        types,
        merges: if sentencepiece {
            Vec::new()
        } else {
            meta.texts(&key("merges"))?.unwrap_or_default().to_vec()
        },
        bos: meta.u32(&key("bos_token_id"))?,
        eos: meta.u32(&key("eos_token_id"))?,
        unknown: meta.u32(&key("unknown_token_id"))?,
        padding: meta.u32(&key("padding_token_id"))?,
        add_bos: meta.bool(&key("add_bos_token"))?.unwrap_or(adds_bos),
        add_eos: meta.bool(&key("add_eos_token"))?.unwrap_or(false),
        add_space_prefix: meta
            .bool(&key("add_space_prefix"))?
            .unwrap_or(sentencepiece),
    };
    from_vocabulary(&vocabulary, meta.text("tokenizer.chat_template")?, eos_ids).map(Some)
}
