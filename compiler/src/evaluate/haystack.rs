//! The long text around the facts: essays from evaluation's own lexicon, or any text of the user's.
//!
//! Facts are paragraphs of their own between sentences. The essays share no sentence with calibration.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::essays::ESSAYS;
use crate::calibrate::builtin::at_depth;
use crate::calibrate::prose::Prose;

/// Shortest sentence that a text is cut into, in bytes: single words and numbers stay with what follows.
const LEAST_SENTENCE: usize = 24;

/// A text, cut into sentences once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sentences(Vec<String>);

impl Sentences {
    /// Cuts a text at ends of sentences and at blank lines. Empty where the text is.
    pub(crate) fn of(text: &str) -> Self {
        let mut sentences = Vec::new();
        for paragraph in text.replace("\r\n", "\n").split("\n\n") {
            let words = paragraph.split_whitespace();
            let mut sentence = String::new();
            for word in words {
                if !sentence.is_empty() {
                    sentence.push(' ');
                }
                sentence.push_str(word);
                let ends = word
                    .trim_end_matches(['"', '\'', ')', '\u{201d}', '\u{2019}'])
                    .ends_with(['.', '!', '?']);
                if ends && sentence.len() >= LEAST_SENTENCE {
                    sentences.push(std::mem::take(&mut sentence));
                }
            }
            if !sentence.is_empty() {
                sentences.push(sentence);
            }
        }
        Self(sentences)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A source of sentences without an end.
#[derive(Debug)]
pub(crate) enum Haystack<'a> {
    /// Essays from templates.
    Essays(Box<Prose>),
    /// Sentences of a text from a random one on, from the start again after the last.
    Passage {
        /// All of them.
        sentences: &'a Sentences,
        /// The first one that is used.
        first: usize,
    },
}

impl<'a> Haystack<'a> {
    /// Essays, or the given text where there is one, from a place that `rng` chooses.
    pub(crate) fn new(text: Option<&'a Sentences>, mut rng: ChaCha8Rng) -> Self {
        match text.filter(|text| !text.is_empty()) {
            None => Self::Essays(Box::new(Prose::new(ESSAYS, rng))),
            Some(sentences) => Self::Passage {
                first: rng.random_range(0..sentences.0.len()),
                sentences,
            },
        }
    }

    /// The first `count` sentences and `words` words of the next one.
    fn plain(&mut self, count: usize, words: usize) -> String {
        match self {
            Self::Essays(prose) => prose.text(count, words, None),
            Self::Passage { sentences, first } => {
                let at = |index: usize| &sentences.0[(*first + index) % sentences.0.len()];
                let mut parts: Vec<String> = (0..count).map(|index| at(index).clone()).collect();
                if words > 0 {
                    let kept: Vec<&str> = at(count).split(' ').take(words).collect();
                    parts.push(kept.join(" "));
                }
                parts.join(" ")
            }
        }
    }

    /// The first `count` sentences and `words` words of the next one, with facts as paragraphs of their own, each at its
    /// depth from 0 to 1; facts at the same place stand in the order given.
    pub(crate) fn text(&mut self, count: usize, words: usize, facts: &[(f64, String)]) -> String {
        let whole = self.plain(count, words);
        let mut places: Vec<(usize, &str)> = facts
            .iter()
            .map(|(depth, fact)| {
                let before = at_depth(*depth, count);
                let at = if before == count {
                    whole.len()
                } else {
                    self.plain(before, 0).len()
                };
                (at, fact.as_str())
            })
            .collect();
        places.sort_by_key(|(at, _)| *at);
        let mut text = String::with_capacity(whole.len());
        let mut done = 0;
        for (at, fact) in places {
            let before = whole[done..at].trim();
            if !before.is_empty() {
                push_paragraph(&mut text, before);
            }
            push_paragraph(&mut text, fact);
            done = at;
        }
        let rest = whole[done..].trim();
        if !rest.is_empty() {
            push_paragraph(&mut text, rest);
        }
        text
    }

    /// Words of the sentence after the first `count`.
    pub(crate) fn words_after(&mut self, count: usize) -> usize {
        match self {
            Self::Essays(prose) => prose.words_after(count),
            Self::Passage { sentences, first } => sentences.0[(*first + count) % sentences.0.len()]
                .split(' ')
                .count(),
        }
    }
}

fn push_paragraph(text: &mut String, paragraph: &str) {
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(paragraph);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::seeded;

    #[test]
    fn texts_are_cut_into_sentences() {
        let text = "Call me Ishmael. Some years ago\r\nI went to sea.\r\n\r\n\"Whither, in God's name?\" he said.";
        assert_eq!(
            Sentences::of(text).0,
            [
                "Call me Ishmael. Some years ago I went to sea.",
                "\"Whither, in God's name?\"",
                "he said."
            ]
        );
        assert!(Sentences::of(" \n\n ").is_empty());
    }

    #[test]
    fn facts_stand_at_their_depths_and_nothing_is_lost() {
        let sentences = Sentences::of(
            "One is the first of them all. Two is the second of them all. Three is the third of them all.",
        );
        let facts = [
            (0.0, "A.".to_owned()),
            (0.5, "B.".to_owned()),
            (1.0, "C.".to_owned()),
        ];
        for text in [None, Some(&sentences)] {
            let mut hay = Haystack::new(text, seeded("test", "", 0, 1, 0));
            let plain = hay.text(40, 3, &[]);
            let with = hay.text(40, 3, &facts);
            let paragraphs: Vec<&str> = with.split("\n\n").collect();
            assert_eq!(
                (paragraphs[0], paragraphs[paragraphs.len() - 1]),
                ("A.", "C.")
            );
            let middle = paragraphs.iter().position(|text| *text == "B.").unwrap();
            let before: usize = paragraphs[..middle].iter().map(|text| text.len()).sum();
            let share = before as f64 / plain.len() as f64;
            assert!((0.4..0.6).contains(&share), "{share}");
            let without: Vec<&str> = with
                .split_whitespace()
                .filter(|word| !["A.", "B.", "C."].contains(word))
                .collect();
            assert_eq!(without, plain.split_whitespace().collect::<Vec<_>>());
        }
    }
}
