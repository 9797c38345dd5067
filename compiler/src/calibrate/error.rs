//! What makes a calibration unusable.

use std::path::PathBuf;

use moa_model::ModelError;

/// A calibration that cannot be read or does not serve a length.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The file cannot be read.
    #[error("cannot read calibration {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line that is no record.
    #[error("calibration line {line}: {reason}")]
    BadLine {
        /// Line number, the first is 1.
        line: usize,
        /// What was expected.
        reason: String,
    },
    /// A text that is not UTF-8.
    #[error("calibration text is not UTF-8 from byte {at}")]
    NotUtf8 {
        /// First byte that is not.
        at: usize,
    },
    /// A file without any record or token.
    #[error("calibration is empty")]
    Empty,
    /// Text for a model that came without a tokenizer.
    #[error("calibration{} holds text, and the model has no tokenizer", line.map(|line| format!(" line {line}")).unwrap_or_default())]
    NoTokenizer {
        /// Line of the record, if it is one.
        line: Option<usize>,
    },
    /// Nothing in the file is long enough.
    #[error(
        "no calibration record serves length {length}: expected at least {needed} tokens, the longest has {longest}"
    )]
    TooShort {
        /// The length to serve.
        length: u32,
        /// Nine tenths of it.
        needed: usize,
        /// Tokens of the longest record, with the response that it has or that is still to be written.
        longest: usize,
    },
    /// Long records exist, but their responses fill the whole length.
    #[error(
        "no calibration record serves length {length}: the responses leave no room for a prompt"
    )]
    NoRoom {
        /// The length to serve.
        length: u32,
    },
    /// A built-in text does not fit the length even without filler.
    #[error("a {kind} sample needs at least {needed} tokens, the length is {length}")]
    LengthTooSmall {
        /// Which kind.
        kind: &'static str,
        /// Tokens without any filler.
        needed: usize,
        /// The length asked for.
        length: u32,
    },
    /// The tokenizer or its template refused a text.
    #[error("cannot tokenize calibration")]
    Tokenizer(#[from] ModelError),
}

impl CalibrationError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { path, .. } => Some(format!("check that {} exists and is readable", path.display())),
            Self::BadLine { .. } => Some(
                r#"each line is {"prompt":..,"response":..}, {"messages":[..]} or {"ids":[..],"response_start":k}"#.into(),
            ),
            Self::NotUtf8 { .. } => Some("convert the text to UTF-8".into()),
            Self::Empty => Some("give a file with records or text, or leave out --calibration for the built-in one".into()),
            Self::NoTokenizer { .. } => {
                Some(r#"use records of ids, {"ids":[..],"response_start":k}, or a model with its tokenizer"#.into())
            }
            Self::TooShort { longest, .. } => Some(format!(
                "give longer records, or profile lengths up to {} with --lengths",
                longest * 10 / 9
            )),
            Self::NoRoom { .. } => Some("give records with shorter responses, or longer --lengths".into()),
            Self::LengthTooSmall { needed, .. } => Some(format!("use lengths of {needed} tokens or more")),
            Self::Tokenizer(_) => None,
        }
    }
}
