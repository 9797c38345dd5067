//! What surrounds the facts of calibration: stories from templates, or a passage of a given text.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::prose::Prose;
use super::sentences::Sentences;

/// Sentences without an end.
#[derive(Debug)]
pub(crate) enum Filler<'a> {
    /// Stories from templates.
    Stories(Box<Prose>),
    /// Sentences of a text from `first` on, from the start again after the last.
    Passage {
        sentences: &'a Sentences,
        first: usize,
    },
}

impl<'a> Filler<'a> {
    /// A passage of `text` from a place that `rng` chooses, or the stories.
    pub(crate) fn new(text: Option<&'a Sentences>, stories: Prose, mut rng: ChaCha8Rng) -> Self {
        match text.filter(|text| !text.is_empty()) {
            None => Self::Stories(Box::new(stories)),
            Some(sentences) => Self::Passage {
                first: rng.random_range(0..sentences.len()),
                sentences,
            },
        }
    }

    /// The first `count` sentences and `words` words of the next one, with `fact` as a paragraph of its own after the given
    /// number of sentences.
    pub(crate) fn text(&mut self, count: usize, words: usize, (at, fact): (usize, &str)) -> String {
        match self {
            Self::Stories(prose) => prose.text(count, words, Some((at, fact))),
            Self::Passage { sentences, first } => {
                let at = at.min(count);
                let before = sentences.passage(*first, at, 0);
                let after = sentences.passage(*first + at, count - at, words);
                let parts = [before.as_str(), fact, after.as_str()];
                let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                parts.join("\n\n")
            }
        }
    }

    /// The first `words` words.
    pub(crate) fn opening(&mut self, words: usize) -> String {
        match self {
            Self::Stories(prose) => prose.opening(words),
            Self::Passage { sentences, first } => {
                // No sentence has fewer words than one.
                let text = sentences.passage(*first, words, 0);
                text.split(' ').take(words).collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// Words of the sentence after the first `count`.
    pub(crate) fn words_after(&mut self, count: usize) -> usize {
        match self {
            Self::Stories(prose) => prose.words_after(count),
            Self::Passage { sentences, first } => sentences.at(*first + count).split(' ').count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seeded;
    use super::super::stories::STORIES;
    use super::*;

    #[test]
    fn facts_stand_between_sentences_and_nothing_is_lost() {
        let rng = seeded("test", "", 0, 1, 0);
        let stories = || Prose::new(STORIES, rng.clone());
        let sentences = Sentences::of(
            "One is the first of them all. Two is the second of them all. Three is the third of them all.",
        );
        for text in [None, Some(&sentences)] {
            let mut filler = Filler::new(text, stories(), rng.clone());
            for at in [0, 2, 5, 9] {
                let with = filler.text(5, 3, (at, "FACT."));
                let paragraphs: Vec<&str> = with.split("\n\n").collect();
                assert!(paragraphs.contains(&"FACT."), "{with}");
                let without: Vec<&str> = with
                    .split_whitespace()
                    .filter(|word| *word != "FACT.")
                    .collect();
                let plain = filler.text(5, 3, (0, "FACT."));
                assert_eq!(
                    without,
                    plain.split_whitespace().skip(1).collect::<Vec<_>>()
                );
            }
            assert_eq!(filler.opening(4).split(' ').count(), 4);
            assert!(filler.words_after(7) > 4);
        }
    }
}
