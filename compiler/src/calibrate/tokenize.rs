//! Conversations as ids, in the form that the model itself would see and write.

use moa_model::{ChatTokenizer, Message, ModelError};

use super::Result;

/// A chat template may name the date; calibration must not depend on the day.
const TEMPLATE_UNIX_SECS: i64 = 1_735_689_600;

/// What calibration needs of a tokenizer, so that it can be tested without one. Threads share it: texts are fitted to their
/// length by tokenizing them a dozen times.
pub trait Tokenize: Sync {
    /// The ids of `text`; with `add_special` the tokens that open every text of the model (BOS) come first.
    ///
    /// # Errors
    ///
    /// A text that the tokenizer refuses.
    fn encode(&self, text: &str, add_special: bool) -> std::result::Result<Vec<u32>, ModelError>;

    /// `(role, content)` messages in the model's own form, or `None` where it has no chat template.
    ///
    /// # Errors
    ///
    /// A template that refuses the messages.
    fn chat(
        &self,
        messages: &[(&str, &str)],
        add_generation_prompt: bool,
    ) -> std::result::Result<Option<String>, ModelError>;
}

impl Tokenize for ChatTokenizer {
    fn encode(&self, text: &str, add_special: bool) -> std::result::Result<Vec<u32>, ModelError> {
        Self::encode(self, text, add_special)
    }

    fn chat(
        &self,
        messages: &[(&str, &str)],
        add_generation_prompt: bool,
    ) -> std::result::Result<Option<String>, ModelError> {
        if !self.has_chat_template() {
            return Ok(None);
        }
        let messages: Vec<Message> = messages
            .iter()
            .map(|(role, content)| Message::new(*role, *content))
            .collect();
        self.apply_chat_template_at(&messages, add_generation_prompt, TEMPLATE_UNIX_SECS)
            .map(Some)
    }
}

/// The ids of a conversation up to where the model answers.
pub(crate) fn prompt_ids(tokenizer: &dyn Tokenize, messages: &[(&str, &str)]) -> Result<Vec<u32>> {
    Ok(match tokenizer.chat(messages, true)? {
        // The template writes the special tokens itself.
        Some(prompt) => tokenizer.encode(&prompt, false)?,
        None => tokenizer.encode(&plain(messages), true)?,
    })
}

/// The ids of `response` as the model would write it, its end-of-turn token included where the template has one.
pub(crate) fn response_ids(
    tokenizer: &dyn Tokenize,
    messages: &[(&str, &str)],
    response: &str,
) -> Result<Vec<u32>> {
    let mut text = response.to_owned();
    if let Some(prompt) = tokenizer.chat(messages, true)? {
        let mut whole = messages.to_vec();
        whole.push(("assistant", response));
        // A template that rewrites earlier turns has no such suffix; then the response stands alone.
        let whole = tokenizer.chat(&whole, false)?.unwrap_or_default();
        if let Some(rest) = whole.strip_prefix(&prompt) {
            rest.trim_end().clone_into(&mut text);
        }
    }
    Ok(tokenizer.encode(&text, false)?)
}

/// Messages for a model without a chat template.
fn plain(messages: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (_, content) in messages {
        text.push_str(content);
        text.push_str("\n\n");
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Splits text into words and punctuation of at most four letters, as byte-pair tokenizers roughly do.
    #[derive(Debug, Default)]
    pub(crate) struct Words {
        pub(crate) without_template: bool,
    }

    pub(crate) const VOCAB_SIZE: u32 = 1 << 20;
    pub(crate) const BOS: u32 = 1;

    impl Tokenize for Words {
        fn encode(
            &self,
            text: &str,
            add_special: bool,
        ) -> std::result::Result<Vec<u32>, ModelError> {
            let mut ids = if add_special { vec![BOS] } else { Vec::new() };
            let mut piece = String::new();
            let mut flush = |piece: &mut String| {
                if !piece.is_empty() {
                    let mut hasher = Sha256::new();
                    hasher.update(piece.as_bytes());
                    let hash: [u8; 32] = hasher.finalize().into();
                    ids.push(2 + u32::from_le_bytes([hash[0], hash[1], hash[2] & 7, 0]));
                    piece.clear();
                }
            };
            for char in text.chars() {
                if !char.is_alphanumeric() || piece.chars().count() == 4 {
                    flush(&mut piece);
                }
                if !char.is_whitespace() {
                    piece.push(char);
                }
                if !char.is_alphanumeric() {
                    flush(&mut piece);
                }
            }
            flush(&mut piece);
            Ok(ids)
        }

        fn chat(
            &self,
            messages: &[(&str, &str)],
            add_generation_prompt: bool,
        ) -> std::result::Result<Option<String>, ModelError> {
            if self.without_template {
                return Ok(None);
            }
            let mut text = String::new();
            for (role, content) in messages {
                text.push_str(&format!("<{role}>\n{content}<end>\n"));
            }
            if add_generation_prompt {
                text.push_str("<assistant>\n");
            }
            Ok(Some(text))
        }
    }

    #[test]
    fn a_response_ends_with_the_end_of_turn_and_no_newline() {
        let words = Words::default();
        let messages = [("user", "why")];
        let prompt = prompt_ids(&words, &messages).unwrap();
        assert_eq!(
            prompt,
            words.encode("<user>why<end><assistant>", false).unwrap()
        );
        let response = response_ids(&words, &messages, "so it is").unwrap();
        assert_eq!(response, words.encode("so it is<end>", false).unwrap());
        let bare = Words {
            without_template: true,
        };
        assert_eq!(response_ids(&bare, &messages, "so it is").unwrap().len(), 3);
        assert_eq!(prompt_ids(&bare, &messages).unwrap()[0], BOS);
    }
}
