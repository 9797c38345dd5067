//! Which tokens may come next in an answer that must follow a JSON schema: a thin shell around llguidance, for JavaScript.
//! It is a wasm module of its own, which only pages that ask for such answers load. It knows no model and chooses no token.

use std::sync::Arc;

use js_sys::Uint32Array;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use wasm_bindgen::prelude::*;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// The lengths do not add up to the bytes.
    #[error("the vocabulary has {bytes} bytes, its lengths say {lengths}")]
    Vocabulary {
        /// Bytes that were given.
        bytes: usize,
        /// Sum of the lengths.
        lengths: usize,
    },
    /// The vocabulary has no such token.
    #[error("token {id} is not in the vocabulary of {size}")]
    Token {
        /// The token.
        id: u32,
        /// Tokens there are.
        size: usize,
    },
    /// The schema is no JSON, or holds what is not supported.
    #[error("{0}")]
    Schema(String),
    /// The token that was taken does not fit.
    #[error("{0}")]
    Mismatch(String),
}

impl From<GrammarError> for JsValue {
    fn from(error: GrammarError) -> Self {
        js_sys::Error::new(&error.to_string()).into()
    }
}

/// The tokens of a model as bytes, arranged for quick looking up.
#[wasm_bindgen]
pub struct Vocabulary {
    factory: ParserFactory,
    size: usize,
}

#[wasm_bindgen]
impl Vocabulary {
    /// All tokens' bytes in a row, and how many each has; 0 for those that no text may hold. `eos` ends an answer.
    #[wasm_bindgen(constructor)]
    pub fn new(bytes: &[u8], lengths: &[u32], eos: u32) -> Result<Self, GrammarError> {
        let total = lengths.iter().map(|&length| length as usize).sum();
        if total != bytes.len() {
            return Err(GrammarError::Vocabulary {
                bytes: bytes.len(),
                lengths: total,
            });
        }
        let size = lengths.len();
        let count = u32::try_from(size).unwrap_or(u32::MAX);
        if eos >= count {
            return Err(GrammarError::Token { id: eos, size });
        }
        let mut rest = bytes;
        let words: Vec<Vec<u8>> = lengths
            .iter()
            .map(|&length| {
                let (word, after) = rest.split_at(length as usize);
                rest = after;
                word.to_vec()
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(count, eos), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[])
            .map_err(|error| GrammarError::Schema(error.to_string()))?;
        factory.quiet();
        Ok(Self { factory, size })
    }

    /// The grammar of one answer.
    pub fn grammar(&self, schema: &str) -> Result<Grammar, GrammarError> {
        let schema = serde_json::from_str(schema)
            .map_err(|error| GrammarError::Schema(format!("the schema is no JSON: {error}")))?;
        let parser = self
            .factory
            .create_parser(TopLevelGrammar::from_json_schema(schema))
            .map_err(|error| GrammarError::Schema(error.to_string()))?;
        Ok(Grammar {
            matcher: Matcher::new(Ok(parser)),
            size: self.size,
        })
    }
}

/// How far one answer is.
#[wasm_bindgen]
pub struct Grammar {
    matcher: Matcher,
    size: usize,
}

#[wasm_bindgen]
impl Grammar {
    /// One bit a token, lowest first, 32 in a word: whether it may come next. At the end only the one that ends an answer.
    pub fn mask(&mut self) -> Result<Uint32Array, GrammarError> {
        let mask = self
            .matcher
            .compute_mask_or_eos()
            .map_err(|error| GrammarError::Mismatch(error.to_string()))?;
        let words = self.size.div_ceil(32).min(mask.as_slice().len());
        Ok(Uint32Array::from(&mask.as_slice()[..words]))
    }

    /// Goes on with a token that the mask allowed.
    pub fn accept(&mut self, id: u32) -> Result<(), GrammarError> {
        if id as usize >= self.size {
            return Err(GrammarError::Token {
                id,
                size: self.size,
            });
        }
        self.matcher
            .consume_token(id)
            .map_err(|error| GrammarError::Mismatch(error.to_string()))
    }
}
