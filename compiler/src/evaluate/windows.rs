//! Windows of a text: what perplexity, divergence and agreement are measured on.
//!
//! The second half of a window carries loss, with the first as its context: positions that see nothing far back would
//! dilute what a mask costs. Windows lie side by side while the text has room for that.

use std::path::Path;

use moa_format::ModelConfig;
use rand::Rng as _;

use super::essays::ESSAYS;
use super::haystack::Sentences;
use super::trial::{Check, Family, Trial};
use crate::calibrate::prose::Prose;
use crate::calibrate::text::Text;
use crate::calibrate::{Result, Tokenize, seeded};
use crate::files::{TEXT_LIMIT, read_bounded};
use crate::hint::Told;
use crate::ids;

/// Tokens that a model writes on for agreement with the dense model.
pub(crate) const MAX_NEW_TOKENS: u32 = 32;

/// The text that windows are cut from.
#[derive(Debug)]
pub(crate) enum Corpus {
    /// A text of the user's: its tokens, and its sentences for haystacks.
    Text(Text, Sentences),
    /// Token ids of the user's.
    Ids(Vec<u32>),
    /// Essays from templates, another one for every window.
    Essays,
    /// Random ids, for models without a tokenizer.
    Random,
}

impl Corpus {
    /// Opens a text file, or a JSON array of ids; without a path essays, or random ids where there is no tokenizer.
    pub(crate) fn open(
        path: Option<&Path>,
        tokenizer: Option<&dyn Tokenize>,
        config: &ModelConfig,
    ) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(match tokenizer {
                Some(_) => Self::Essays,
                None => Self::Random,
            });
        };
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            return Ok(Self::Ids(ids::read(path, config)?));
        }
        let bytes = read_bounded(path, TEXT_LIMIT)?;
        let Some(tokenizer) = tokenizer else {
            return Err(Told::new(
                "this model has no tokenizer, and --text is a text",
                "pass a JSON array of token ids",
            )
            .into());
        };
        let text = Text::parse(&bytes, tokenizer)?;
        let sentences = Sentences::of(&String::from_utf8_lossy(&bytes));
        Ok(Self::Text(text, sentences))
    }

    /// Sentences for haystacks, if the text is the user's.
    pub(crate) fn sentences(&self) -> Option<&Sentences> {
        match self {
            Self::Text(_, sentences) => Some(sentences),
            _ => None,
        }
    }

    /// What results say of it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Text(..) => "text",
            Self::Ids(_) => "ids",
            Self::Essays => "essays",
            Self::Random => "random ids",
        }
    }

    /// Up to `count` windows of `length` tokens.
    pub(crate) fn windows(
        &self,
        tokenizer: Option<&dyn Tokenize>,
        vocab_size: u32,
        length: u32,
        count: usize,
        seed: u64,
    ) -> Result<Vec<Vec<u32>>> {
        let generator = |index| seeded("moa text evaluation 1", "window", length, seed, index);
        match (self, tokenizer) {
            (Self::Text(text, _), _) => {
                let samples = text.samples(length, count, seed)?;
                Ok(samples.into_iter().map(|sample| sample.ids).collect())
            }
            (Self::Ids(ids), _) => {
                let body = (length as usize).min(ids.len());
                let room = ids.len() - body;
                let starts = (0..count).map(|at| room * at / count.saturating_sub(1).max(1));
                let mut starts: Vec<usize> = starts.collect();
                starts.dedup();
                Ok(starts
                    .into_iter()
                    .map(|start| ids[start..start + body].to_vec())
                    .collect())
            }
            (Self::Essays, Some(tokenizer)) => (0..count)
                .map(|index| {
                    let mut prose = Prose::new(ESSAYS, generator(index));
                    let mut sentences = length as usize / 12 + 4;
                    loop {
                        let mut ids = tokenizer.encode(&prose.text(sentences, 0, None), true)?;
                        if ids.len() >= length as usize {
                            ids.truncate(length as usize);
                            return Ok(ids);
                        }
                        sentences += sentences / 2;
                    }
                })
                .collect(),
            (Self::Random | Self::Essays, _) => Ok((0..count)
                .map(|index| {
                    let mut rng = generator(index);
                    (0..length.max(2))
                        .map(|_| rng.random_range(0..vocab_size))
                        .collect()
                })
                .collect()),
        }
    }
}

/// Windows as trials of a family that needs no question.
pub(crate) fn trials(family: Family, windows: Vec<Vec<u32>>) -> Vec<Trial> {
    let (check, max_new) = if family == Family::Agreement {
        (Check::LikeDense, MAX_NEW_TOKENS)
    } else {
        (Check::Silent, 0)
    };
    windows
        .into_iter()
        .enumerate()
        .map(|(index, ids)| Trial {
            family,
            index,
            ids,
            gold: Vec::new(),
            check: check.clone(),
            depth: None,
            max_new,
            source: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::tokenize::tests::Words;

    #[test]
    fn windows_have_their_length_and_differ() {
        let words = Words::default();
        let essays = Corpus::Essays
            .windows(Some(&words), 1 << 20, 700, 3, 1)
            .unwrap();
        assert!(essays.iter().all(|ids| ids.len() == 700));
        assert_ne!(essays[0], essays[1]);
        let random = Corpus::Random.windows(None, 50, 64, 2, 0).unwrap();
        assert!(random.iter().flatten().all(|id| *id < 50));
        let ids: Vec<u32> = (0..100).collect();
        let own = Corpus::Ids(ids).windows(None, 200, 40, 3, 0).unwrap();
        assert_eq!(
            own.iter().map(|ids| ids[0]).collect::<Vec<_>>(),
            [0, 30, 60]
        );
    }
}
