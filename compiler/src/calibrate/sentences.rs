//! A text as a list of sentences, so that facts can stand between them.

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

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// A sentence; after the last the first follows.
    pub(crate) fn at(&self, index: usize) -> &str {
        &self.0[index % self.0.len()]
    }

    /// `count` sentences from `first` on, and `words` words of the next one.
    pub(crate) fn passage(&self, first: usize, count: usize, words: usize) -> String {
        let mut parts: Vec<&str> = (first..first + count).map(|index| self.at(index)).collect();
        let next: Vec<&str> = self.at(first + count).split(' ').take(words).collect();
        let next = next.join(" ");
        if words > 0 {
            parts.push(&next);
        }
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn passages_go_on_at_the_start() {
        let text = Sentences::of("One is the first of them all. Two is the second of them all.");
        assert_eq!(text.len(), 2);
        assert_eq!(
            text.passage(1, 2, 3),
            "Two is the second of them all. One is the first of them all. Two is the"
        );
        assert_eq!(text.passage(0, 0, 0), "");
    }
}
