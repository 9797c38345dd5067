//! What can be wrong with a checkpoint, in words a user can act on.
//!
//! Every message names the file or the field, what was expected and what was found; [`ModelError::hint`]
//! says what to do about it. It deliberately does not print the cause of an I/O or JSON error: that is the
//! error's `source`, which a report prints below it.

use std::path::{Path, PathBuf};

/// A [`std::result::Result`] with this crate's [`ModelError`].
pub type Result<T> = std::result::Result<T, ModelError>;

/// A checkpoint that cannot be read, or that describes a model this project does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Neither a checkpoint folder nor a GGUF file.
    #[error("{} is no model: expected {expected}, found {found}", path.display())]
    NotAModel {
        /// The path as given.
        path: PathBuf,
        /// What would have been a model.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A file longer than anything sensible of its kind.
    #[error("{} is {got} bytes, expected at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        got: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// A file that is no JSON, or JSON of another shape.
    #[error("{} is no valid JSON document of its kind", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A field of a configuration or of GGUF metadata that is absent or out of range.
    #[error("{}: {field} is {got}, expected {expected}", origin.display())]
    BadField {
        /// The file.
        origin: PathBuf,
        /// The field's name as written in the file.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A model that is well-formed and that this project does not run.
    #[error("{what} {got} is not supported (supported: {supported})")]
    Unsupported {
        /// `architecture`, `quantization type of tensor ...`, `rope scaling type`, ...
        what: String,
        /// What the checkpoint asks for.
        got: String,
        /// What would have been accepted.
        supported: &'static str,
    },
    /// A model configuration that contradicts itself.
    #[error("{}: the configuration describes no model", origin.display())]
    BadConfig {
        /// The file.
        origin: PathBuf,
        /// Which numbers disagree.
        source: moa_format::FormatError,
    },
    /// A GGUF header that cannot be true of the file that it begins.
    #[error("{} is damaged at byte {offset}: {what} is {got}, expected {expected}", path.display())]
    DamagedGguf {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What was being read.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A safetensors header that cannot be true of the file that it begins.
    #[error("{} is damaged: {problem}", path.display())]
    DamagedSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the numbers.
        problem: String,
    },
    /// A weight that the configuration calls for and no file holds.
    #[error("tensor {name} is missing, expected {expected}")]
    MissingTensor {
        /// Canonical (Hugging Face) name; in a GGUF file its own name follows in parentheses.
        name: String,
        /// The shape the configuration asks for, as `[rows, cols]`.
        expected: String,
    },
    /// A weight of another shape than the configuration asks for.
    #[error("tensor {name} has shape {got}, expected {expected}")]
    WrongShape {
        /// The tensor's name as written in the file.
        name: String,
        /// The shape the configuration asks for.
        expected: String,
        /// The shape in the file.
        got: String,
    },
    /// A weight that this project would not use, so that the model would compute something else.
    #[error("tensor {name} is no part of a {family} model as this version runs it")]
    ExtraTensor {
        /// The tensor's name as written in the file.
        name: String,
        /// The family that the configuration names.
        family: &'static str,
    },
    /// A request for a weight that the model does not have.
    #[error("the model has no tensor {name}")]
    UnknownTensor {
        /// The name asked for.
        name: String,
    },
    /// A request for rows past a tensor's end.
    #[error("rows {first} to {end} of tensor {name} were asked for, it has {rows}")]
    RowsOutOfRange {
        /// The tensor.
        name: String,
        /// First row asked for.
        first: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows of the tensor.
        rows: usize,
    },
    /// A weight that is NaN or infinite.
    #[error("tensor {name} holds {value} at row {row}, expected finite weights")]
    NonFinite {
        /// The tensor.
        name: String,
        /// The row of the first such weight.
        row: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The tokenizer's files or metadata are absent in part or contradict each other.
    #[error("tokenizer: {what} is {got}, expected {expected}")]
    Tokenizer {
        /// The field.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The tokenizers library refused the tokenizer or the text.
    #[error("tokenizer: {0}")]
    Tokenization(String),
    /// The checkpoint carries no chat template.
    #[error("the model has no chat template")]
    NoChatTemplate,
    /// The chat template does not parse, or refuses these messages.
    #[error("chat template: {problem}")]
    ChatTemplate {
        /// The engine's or the template's own words.
        problem: String,
    },
}

impl ModelError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "check the path; a model is a folder with config.json and safetensors, or one .gguf file".into()
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                "the file ends too early or changed while it was read; download it again".into()
            }
            Self::NotAModel { .. } => {
                "give a folder with config.json and *.safetensors, or the path of one .gguf file".into()
            }
            Self::Json { .. } | Self::DamagedSafetensors { .. } | Self::DamagedGguf { .. } => {
                "the file is damaged or incomplete; download it again and compare its size and checksum".into()
            }
            Self::BadField { origin, field, .. } => {
                format!("look at {field} in {}", origin.display())
            }
            Self::BadConfig { origin, .. } => format!("look at the numbers in {}", origin.display()),
            Self::Unsupported { what, supported, .. } => format!("choose a model whose {what} is one of: {supported}"),
            Self::MissingTensor { .. } => {
                "the download may be incomplete: compare the files with the model's index".into()
            }
            Self::WrongShape { .. } => "config.json and the weights belong to different models, or one was edited".into(),
            Self::ExtraTensor { .. } => {
                "the checkpoint uses a part of the architecture (a bias, a norm, an adapter) that is not supported".into()
            }
            Self::NonFinite { .. } => "the weights are damaged or overflowed when they were converted".into(),
            Self::Tokenizer { .. } | Self::Tokenization(_) => {
                "tokenizer.json or the GGUF tokenizer metadata is damaged or of a kind this version cannot read; commands that take token ids work without it"
                    .into()
            }
            Self::NoChatTemplate => {
                "give a plain prompt, or put a chat_template into tokenizer_config.json".into()
            }
            Self::ChatTemplate { .. } => "check the roles of the messages and their order".into(),
            Self::TooLarge { .. } => "this is hardly the file that was meant; check the path".into(),
            Self::Io { .. } | Self::UnknownTensor { .. } | Self::RowsOutOfRange { .. } => return None,
        };
        Some(text)
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn unsupported(
        what: impl Into<String>,
        got: impl Into<String>,
        supported: &'static str,
    ) -> Self {
        Self::Unsupported {
            what: what.into(),
            got: got.into(),
            supported,
        }
    }

    pub(crate) fn tokenizer(
        what: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Tokenizer {
            what: what.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }
}

/// A shape as it stands in messages: `[rows, cols]`, or `[len]` for a vector.
pub(crate) fn shape_text(shape: &[u64]) -> String {
    let dims: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", dims.join(", "))
}
