//! Retrieval lines: names with values, one of which is asked for.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::prose::pick;
use super::questions::Question;

/// Introduction, line, question and answer, with `{key}` and `{value}`.
const STYLES: &[[&str; 4]] = &[
    [
        "Below is a register with many entries. One of them is asked for at the end.",
        "Entry {key}: the stored value is {value}.",
        "What is the stored value of entry {key}?",
        "The stored value of entry {key} is {value}.",
    ],
    [
        "Here is a table of names and the numbers they point to.",
        "{key} -> {value}",
        "Which number does {key} point to?",
        "{key} points to {value}.",
    ],
    [
        "The bank keeps the following list of accounts. Read it carefully.",
        "Account {key} holds {value} coins.",
        "How many coins does account {key} hold?",
        "Account {key} holds {value} coins.",
    ],
    [
        "This is the log of a warehouse. You will be asked about one parcel.",
        "Parcel {key} was put on shelf {value}.",
        "On which shelf was parcel {key} put?",
        "Parcel {key} was put on shelf {value}.",
    ],
    [
        "Remember the ticket numbers of these guests.",
        "- {key}: ticket {value}",
        "What is the ticket number of {key}?",
        "The ticket number of {key} is {value}.",
    ],
];

const FIRST: &[&str] = &[
    "amber", "brisk", "calm", "dapper", "eager", "fabled", "gilded", "humble", "ivory", "jolly",
    "keen", "lively", "mellow", "noble", "opal", "placid", "quaint", "rustic", "silent", "tawny",
    "urban", "velvet", "witty", "young", "zesty", "bold", "crisp", "dusky", "early", "fresh",
];
const SECOND: &[&str] = &[
    "anchor", "badger", "candle", "dahlia", "ember", "falcon", "garnet", "hammer", "island",
    "jacket", "kernel", "ladder", "marble", "needle", "orchid", "pebble", "quiver", "ribbon",
    "saddle", "timber", "umbrella", "valley", "willow", "yarrow", "zephyr", "basket", "canyon",
    "dragon", "engine", "forest",
];

/// An endless list of lines with distinct names.
#[derive(Debug)]
pub(crate) struct LineWriter {
    rng: ChaCha8Rng,
    line: &'static str,
    keys: BTreeSet<String>,
    lines: Vec<String>,
}

impl LineWriter {
    /// More words than any line has tokens: what fills the room in which no further line fits.
    pub(crate) const WORDS: usize = 28;

    /// A list in one of the styles, and the question about the line that [`Self::text`] is given.
    pub(crate) fn new(mut rng: ChaCha8Rng) -> (Self, Question) {
        let [intro, line, question, answer] = STYLES[rng.random_range(0..STYLES.len())];
        let mut lines = Self {
            rng,
            line,
            keys: BTreeSet::new(),
            lines: Vec::new(),
        };
        let (key, value) = lines.next_pair();
        let filled = |text: &str| text.replace("{key}", &key).replace("{value}", &value);
        let question = Question {
            intro: intro.to_owned(),
            fact: filled(line),
            question: filled(question),
            answer: filled(answer),
        };
        (lines, question)
    }

    /// The first `count` lines with `asked` after the first `at` of them.
    pub(crate) fn text(&mut self, count: usize, at: usize, asked: &str) -> String {
        while self.lines.len() < count {
            let (key, value) = self.next_pair();
            self.lines
                .push(self.line.replace("{key}", &key).replace("{value}", &value));
        }
        let (before, after) = self.lines[..count].split_at(at.min(count));
        let mut lines: Vec<&str> = before.iter().map(String::as_str).collect();
        lines.push(asked);
        lines.extend(after.iter().map(String::as_str));
        lines.join("\n")
    }

    fn next_pair(&mut self) -> (String, String) {
        let mut key = format!(
            "{}-{}",
            pick(FIRST, &mut self.rng),
            pick(SECOND, &mut self.rng)
        );
        if self.keys.contains(&key) {
            // The list has outgrown the names, or will soon.
            key = format!("{key}-{}", self.keys.len());
        }
        self.keys.insert(key.clone());
        (key, self.rng.random_range(10_000..100_000_u32).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::seeded;
    use super::*;

    #[test]
    fn names_are_distinct_and_the_asked_line_stands_where_it_should() {
        for seed in 0..10 {
            let (mut lines, question) = LineWriter::new(seeded("test", "lines", 0, seed, 0));
            let text = lines.text(3000, 1234, &question.fact);
            let all: Vec<&str> = text.lines().collect();
            assert_eq!(all.len(), 3001);
            assert_eq!(all[1234], question.fact);
            assert_eq!(all.iter().filter(|line| **line == question.fact).count(), 1);
            assert_eq!(lines.keys.len(), 3001);
            assert!(!text.contains('{'));
            let value: String = question
                .answer
                .chars()
                .filter(char::is_ascii_digit)
                .collect();
            assert!(question.fact.contains(&value) && value.len() == 5);
            assert!(
                !question.question.contains(&value),
                "the question does not give the answer away"
            );
        }
    }
}
