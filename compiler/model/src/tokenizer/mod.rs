//! Text to token ids and back, and conversations to prompts: one tokenizer.json and one chat template, the
//! same for the compiler and for the browser.
//!
//! Whatever the checkpoint carries becomes a tokenizer.json that both the `tokenizers` crate and the npm
//! package `@huggingface/tokenizers` read alike; this type loads exactly the text that it hands out. It
//! deliberately does not stream: decoding a growing text is the caller's loop.

mod bpe;
mod portable;
pub(crate) mod sentencepiece;
mod spm;
mod template;
mod vocabulary;

use std::fmt;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::{ModelError, Result};
pub use template::Message;
use template::Template;
pub(crate) use vocabulary::{TokenKind, TokenType, Vocabulary};

/// A checkpoint's tokenizer and chat template.
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    json: String,
    config: Map<String, Value>,
    template: Option<Template>,
    eos_ids: Vec<u32>,
}

impl ChatTokenizer {
    /// Loads a tokenizer.json with its `tokenizer_config.json` (in which `chat_template`, where there is one, is
    /// already a single text).
    pub(crate) fn new(
        tokenizer: Value,
        config: Map<String, Value>,
        eos_ids: Vec<u32>,
    ) -> Result<Self> {
        let json = portable::tokenizer_json(tokenizer).to_string();
        let config = portable::tokenizer_config(config);
        let tokenizer = Tokenizer::from_bytes(&json)
            .map_err(|error| ModelError::Tokenization(error.to_string()))?;
        let template = match config.get("chat_template").and_then(Value::as_str) {
            Some(source) => Some(Template::new(source, &config)?),
            None => None,
        };
        Ok(Self {
            tokenizer,
            json,
            config,
            template,
            eos_ids,
        })
    }

    /// Loads the two files that a bundle carries, as [`Self::tokenizer_json`] and
    /// [`Self::tokenizer_config_json`] wrote them.
    pub fn from_json(tokenizer: &[u8], config: &[u8], eos_ids: Vec<u32>) -> Result<Self> {
        let parse = |bytes| {
            serde_json::from_slice::<Value>(bytes)
                .map_err(|error| ModelError::Tokenization(error.to_string()))
        };
        let Value::Object(config) = parse(config)? else {
            return Err(ModelError::Tokenization(
                "tokenizer_config.json is no object".into(),
            ));
        };
        Self::new(parse(tokenizer)?, config, eos_ids)
    }

    /// Token ids of `text`, in which the names of special tokens count as those tokens.
    ///
    /// `add_special` adds what the model wants around a plain text (often a first token); chat templates write
    /// that themselves, so a templated prompt is encoded without.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|error| ModelError::Tokenization(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; ids that the vocabulary lacks are passed over.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer
            .decode(ids, skip_special)
            .map_err(|error| ModelError::Tokenization(error.to_string()))
    }

    /// Whether [`Self::apply_chat_template`] has a template to apply.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt for a conversation, by the model's own template, dated today where the template asks for a date.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.apply_chat_template_at(messages, add_generation_prompt, template::now())
    }

    /// As [`Self::apply_chat_template`], dated `unix_secs` (UTC): what must come out the same every day.
    pub fn apply_chat_template_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        unix_secs: i64,
    ) -> Result<String> {
        let template = self.template.as_ref().ok_or(ModelError::NoChatTemplate)?;
        template.render(messages, add_generation_prompt, unix_secs)
    }

    /// The id of a token by its text, special tokens included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The text of a token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// One more than the largest id, special tokens included.
    pub fn id_count(&self) -> u32 {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id.saturating_add(1))
    }

    /// The tokenizer.json that a bundle ships.
    pub fn tokenizer_json(&self) -> String {
        self.json.clone()
    }

    /// The `tokenizer_config.json` that a bundle ships: `chat_template` and special tokens are plain texts.
    pub fn tokenizer_config_json(&self) -> String {
        Value::Object(self.config.clone()).to_string()
    }

    /// The chat template's source.
    pub fn chat_template(&self) -> Option<&str> {
        self.config.get("chat_template").and_then(Value::as_str)
    }

    /// Tokens that end a text, the model's first choice first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Adds what the tokenizer itself calls its end token to the end tokens of the model.
    pub(crate) fn complete_eos(&mut self, vocab_size: u32) -> &[u32] {
        let own = self
            .config
            .get("eos_token")
            .and_then(Value::as_str)
            .and_then(|token| self.token_id(token));
        if let Some(id) = own.filter(|id| *id < vocab_size && !self.eos_ids.contains(id)) {
            self.eos_ids.push(id);
        }
        &self.eos_ids
    }
}

impl fmt::Debug for ChatTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTokenizer")
            .field("ids", &self.id_count())
            .field("chat_template", &self.has_chat_template())
            .field("eos_ids", &self.eos_ids)
            .finish()
    }
}

/// A tokenizer.json around a BPE model, with what GGUF and SentencePiece files share.
pub(crate) struct Parts {
    pub(crate) normalizer: Value,
    pub(crate) pre_tokenizer: Value,
    pub(crate) decoder: Value,
    pub(crate) model: Value,
}

/// Builds the tokenizer of a vocabulary that came without a tokenizer.json.
pub(crate) fn from_vocabulary(
    vocabulary: &Vocabulary,
    template: Option<&str>,
    eos_ids: Vec<u32>,
) -> Result<ChatTokenizer> {
    vocabulary.check()?;
    let parts = match &vocabulary.kind {
        TokenKind::ByteLevel { pre } => bpe::parts(vocabulary, pre)?,
        TokenKind::SentencePiece { scores } => spm::parts(vocabulary, scores)?,
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": vocabulary.post_processor(),
        "decoder": parts.decoder,
        "model": parts.model,
    });
    let mut config = vocabulary.tokenizer_config();
    if let Some(template) = template {
        config.insert("chat_template".into(), template.into());
    }
    ChatTokenizer::new(tokenizer, config, eos_ids)
}
