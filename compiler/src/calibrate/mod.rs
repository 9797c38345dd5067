//! Calibration: the token sequences whose loss the profile differentiates.
//!
//! Three sources give [`Sample`]s of at most N tokens: a jsonl file of prompts and responses ([`jsonl`]), a plain text
//! cut into windows ([`text`]), and the built-in default ([`builtin`]), which writes texts with dependencies across
//! their whole length from a seed and needs no download. A response that a file does not give is left open: the
//! sample [needs one](Sample::needs_response), and the caller has the dense model write it. Nothing here runs a model.

pub mod builtin;
mod error;
pub(crate) mod fit;
pub mod jsonl;
mod lines;
pub(crate) mod prose;
pub(crate) mod questions;
pub(crate) mod stories;
pub mod text;
pub(crate) mod tokenize;

use std::path::PathBuf;

use moa_format::hex;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use sha2::{Digest as _, Sha256};

pub use builtin::Kind;
pub use error::CalibrationError;
pub use tokenize::Tokenize;
pub(crate) use tokenize::{prompt_ids, response_ids};

/// A [`std::result::Result`] with a [`CalibrationError`].
pub type Result<T> = std::result::Result<T, CalibrationError>;

/// Tokens that the dense model writes at most where a record has no response.
pub const RESPONSE_TOKENS: u32 = 128;

/// One sequence to differentiate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Prompt and response.
    pub ids: Vec<u32>,
    /// First target position: tokens at this position and later carry loss. At least 1.
    pub response_start: usize,
    /// Where the sample comes from: a built-in kind, `record`, `text`, or what a record says in `kind`.
    pub kind: String,
}

impl Sample {
    /// Whether the response is still to be written, by the dense model, greedily, up to [`RESPONSE_TOKENS`] tokens
    /// and within the sample's length.
    pub fn needs_response(&self) -> bool {
        self.response_start >= self.ids.len()
    }
}

/// Where samples come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CalibrationSource {
    /// A file of one JSON record a line.
    Jsonl(PathBuf),
    /// A plain text for language modeling.
    Text(PathBuf),
    /// The built-in generator with these kinds of samples.
    Builtin(Vec<Kind>),
}

impl CalibrationSource {
    /// The source that a file name means: `.jsonl` and `.json` hold records, everything else is text.
    pub fn of_file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let records = path.extension().is_some_and(|extension| {
            extension.eq_ignore_ascii_case("jsonl") || extension.eq_ignore_ascii_case("json")
        });
        if records {
            Self::Jsonl(path)
        } else {
            Self::Text(path)
        }
    }
}

/// An opened source.
#[derive(Debug, Clone)]
pub struct Calibration {
    content: Content,
    sha256: String,
}

#[derive(Debug, Clone)]
enum Content {
    Records(jsonl::Records),
    Text(text::Text),
    Builtin(Vec<Kind>),
}

impl Calibration {
    /// Opens a source. A model without a tokenizer serves records of ids alone; every id of a file must be below
    /// `vocab_size`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a line that is no record, text without a tokenizer.
    pub fn open(
        source: &CalibrationSource,
        tokenizer: Option<&dyn Tokenize>,
        vocab_size: u32,
    ) -> Result<Self> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| CalibrationError::Unreadable {
                path: path.clone(),
                source,
            })
        };
        let (content, sha256) = match source {
            CalibrationSource::Jsonl(path) => {
                let bytes = read(path)?;
                let records = jsonl::Records::parse(&bytes, tokenizer, vocab_size)?;
                (Content::Records(records), sha256_hex(&[&bytes]))
            }
            CalibrationSource::Text(path) => {
                let bytes = read(path)?;
                let tokenizer = tokenizer.ok_or(CalibrationError::NoTokenizer { line: None })?;
                let text = text::Text::parse(&bytes, tokenizer)?;
                (Content::Text(text), sha256_hex(&[&bytes]))
            }
            CalibrationSource::Builtin(kinds) => {
                tokenizer.ok_or(CalibrationError::NoTokenizer { line: None })?;
                let mut parts: Vec<&[u8]> = vec![builtin::VERSION.as_bytes()];
                for kind in kinds {
                    parts.push(kind.name().as_bytes());
                }
                (Content::Builtin(kinds.clone()), sha256_hex(&parts))
            }
        };
        Ok(Self { content, sha256 })
    }

    /// Hex sha256 of the file, or of the generator's version and kinds; with the seed it decides every sample.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Up to `count` samples of each kind for the length `length`, none longer. A file that holds fewer gives fewer,
    /// in an order that `seed` decides.
    ///
    /// # Errors
    ///
    /// A file in which nothing is long enough: the error names the longest. A length too short for the built-in texts.
    pub fn samples(
        &self,
        tokenizer: Option<&dyn Tokenize>,
        length: u32,
        count: usize,
        seed: u64,
    ) -> Result<Vec<Sample>> {
        match &self.content {
            Content::Records(records) => records.samples(length, count, seed),
            Content::Text(text) => text.samples(length, count, seed),
            Content::Builtin(kinds) => {
                let tokenizer = tokenizer.ok_or(CalibrationError::NoTokenizer { line: None })?;
                builtin::samples(kinds, tokenizer, length, count, seed)
            }
        }
    }
}

/// Hex sha256 of samples as they are profiled: ids, where loss begins, kinds.
pub fn samples_sha256(samples: &[Sample]) -> String {
    let mut hasher = Sha256::new();
    for sample in samples {
        hasher.update((sample.kind.len() as u64).to_le_bytes());
        hasher.update(sample.kind.as_bytes());
        hasher.update((sample.response_start as u64).to_le_bytes());
        hasher.update((sample.ids.len() as u64).to_le_bytes());
        for id in &sample.ids {
            hasher.update(id.to_le_bytes());
        }
    }
    hex(&hasher.finalize())
}

/// Hex sha256 of `parts`, each preceded by its length.
fn sha256_hex(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        if parts.len() > 1 {
            hasher.update((part.len() as u64).to_le_bytes());
        }
        hasher.update(part);
    }
    hex(&hasher.finalize())
}

/// A generator for one purpose: the same `domain`, `name`, `length`, `seed` and `index` give the same numbers, and any
/// difference gives unrelated ones.
pub(crate) fn seeded(domain: &str, name: &str, length: u32, seed: u64, index: usize) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    for part in [domain, name] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.update(length.to_le_bytes());
    hasher.update(seed.to_le_bytes());
    hasher.update((index as u64).to_le_bytes());
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

/// Prompt and response as one sample of at most `length` tokens: a longer prompt loses its middle. `None` where the
/// sample is shorter than nine tenths of `length` or its response leaves no room for a prompt.
pub(crate) fn fit_middle(
    prompt: &[u32],
    response: &[u32],
    kind: &str,
    length: u32,
) -> Option<Sample> {
    let length = length as usize;
    let reserved = reserved_for(response, length);
    let room = length.checked_sub(reserved).filter(|room| *room > 0)?;
    if prompt.is_empty() || (prompt.len() + reserved) * 10 < length * 9 {
        return None;
    }
    let mut ids = if prompt.len() > room {
        let head = room.div_ceil(2);
        let mut kept = prompt[..head].to_vec();
        kept.extend_from_slice(&prompt[prompt.len() - (room - head)..]);
        kept
    } else {
        prompt.to_vec()
    };
    let response_start = ids.len();
    ids.extend_from_slice(response);
    Some(Sample {
        ids,
        response_start,
        kind: kind.to_owned(),
    })
}

/// Tokens that a response takes; one that is still to be written takes [`RESPONSE_TOKENS`], but never more than half.
fn reserved_for(response: &[u32], length: usize) -> usize {
    if response.is_empty() {
        (RESPONSE_TOKENS as usize).min(length / 2)
    } else {
        response.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_loses_its_middle_and_a_short_one_does_not_serve() {
        let prompt: Vec<u32> = (0..100).collect();
        let sample = fit_middle(&prompt, &[7, 8, 9], "k", 14).unwrap();
        assert_eq!(sample.ids, [0, 1, 2, 3, 4, 5, 95, 96, 97, 98, 99, 7, 8, 9]);
        assert_eq!(
            (sample.response_start, sample.needs_response()),
            (11, false)
        );
        let whole = fit_middle(&prompt, &[7], "k", 101).unwrap();
        assert_eq!(whole.ids.len(), 101);
        assert_eq!(
            fit_middle(&prompt, &[7], "k", 112).unwrap().ids.len(),
            101,
            "nine tenths"
        );
        assert_eq!(fit_middle(&prompt, &[7], "k", 113), None);
        assert_eq!(
            fit_middle(&prompt, &[7; 50], "k", 50),
            None,
            "no room for a prompt"
        );
        assert_eq!(fit_middle(&[], &[7; 50], "k", 50), None);
        let open = fit_middle(&prompt, &[], "k", 240).unwrap();
        assert!(
            open.needs_response(),
            "100 and the 120 to come are more than nine tenths of 240"
        );
        assert_eq!(
            fit_middle(&prompt, &[], "k", 60).unwrap().ids.len(),
            30,
            "room for a response is kept"
        );
    }

    #[test]
    fn every_part_of_a_seed_counts() {
        use rand::Rng as _;
        let first = |domain, name, length, seed, index| -> u64 {
            seeded(domain, name, length, seed, index).random()
        };
        let numbers = [
            first("a", "b", 1, 2, 3),
            first("ab", "", 1, 2, 3),
            first("a", "b", 2, 2, 3),
            first("a", "b", 1, 3, 3),
            first("a", "b", 1, 2, 4),
        ];
        for (at, number) in numbers.iter().enumerate() {
            assert!(!numbers[..at].contains(number));
        }
        assert_eq!(first("a", "b", 1, 2, 3), numbers[0]);
    }

    #[test]
    fn hashes_see_ids_and_boundaries() {
        let sample = |ids: &[u32], response_start| Sample {
            ids: ids.to_vec(),
            response_start,
            kind: "k".into(),
        };
        let whole = samples_sha256(&[sample(&[1, 2, 3], 1)]);
        assert_eq!(whole.len(), 64);
        assert_ne!(whole, samples_sha256(&[sample(&[1, 2, 3], 2)]));
        assert_ne!(whole, samples_sha256(&[sample(&[1, 2, 4], 1)]));
        assert_ne!(
            whole,
            samples_sha256(&[sample(&[1], 1), sample(&[2, 3], 1)])
        );
    }

    #[test]
    fn file_names_decide_the_kind_of_source() {
        assert!(matches!(
            CalibrationSource::of_file("a/b.JSONL"),
            CalibrationSource::Jsonl(_)
        ));
        assert!(matches!(
            CalibrationSource::of_file("moby.txt"),
            CalibrationSource::Text(_)
        ));
        assert!(matches!(
            CalibrationSource::of_file("README"),
            CalibrationSource::Text(_)
        ));
        let missing = CalibrationSource::of_file("no/such/file.jsonl");
        let error = Calibration::open(&missing, None, 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read calibration no/such/file.jsonl"
        );
        let builtin = CalibrationSource::Builtin(Kind::ALL.to_vec());
        assert!(matches!(
            Calibration::open(&builtin, None, 10),
            Err(CalibrationError::NoTokenizer { line: None })
        ));
    }
}
