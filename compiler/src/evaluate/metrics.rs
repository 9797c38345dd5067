//! How answers are scored: the metrics of long-context benchmarks, written after their definitions.
//!
//! Scores lie between 0 and 1. Of several references the best counts. Everything works on text; which metric belongs to
//! which data is the loader's business.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A way to compare an answer with its references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    /// Harmonic mean of precision and recall over normalized words.
    F1,
    /// F-measure of the longest common subsequence of words.
    RougeL,
    /// Whether a reference stands in the answer, as whole words.
    Accuracy,
    /// Twice the longest common subsequence of characters over the sum of lengths, of the answer's first line of code.
    EditSimilarity,
}

impl Metric {
    /// The score of an answer.
    pub(crate) fn score(self, answer: &str, references: &[String]) -> f64 {
        let one = |reference: &String| match self {
            Self::F1 => f1(answer, reference),
            Self::RougeL => rouge_l(answer, reference),
            Self::Accuracy => f64::from(contains_words(answer, reference)),
            Self::EditSimilarity => edit_similarity(answer, reference),
        };
        references.iter().map(one).fold(0.0, f64::max)
    }
}

/// Lower case, without punctuation and articles, as words.
fn normalized(text: &str) -> Vec<String> {
    let bare: String = text
        .to_lowercase()
        .chars()
        .filter(|char| !char.is_ascii_punctuation())
        .collect();
    bare.split_whitespace()
        .filter(|word| !matches!(*word, "a" | "an" | "the"))
        .map(ToOwned::to_owned)
        .collect()
}

fn harmonic(common: usize, first: usize, second: usize) -> f64 {
    if common == 0 {
        return 0.0;
    }
    2.0 * common as f64 / (first + second) as f64
}

fn f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalized(answer), normalized(reference));
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for word in &reference {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in &answer {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    harmonic(common, answer.len(), reference.len())
}

fn rouge_l(answer: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        text.to_lowercase()
            .split(|char: char| !char.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(ToOwned::to_owned)
            .collect()
    };
    let (answer, reference) = (words(answer), words(reference));
    harmonic(
        common_subsequence(&answer, &reference),
        answer.len(),
        reference.len(),
    )
}

fn edit_similarity(answer: &str, reference: &str) -> f64 {
    let code = answer.trim_start_matches('\n').lines().find(|line| {
        !line.trim().is_empty() && !["`", "#", "//"].iter().any(|mark| line.contains(mark))
    });
    let answer: Vec<char> = code.unwrap_or_default().chars().collect();
    let reference: Vec<char> = reference.chars().collect();
    harmonic(
        common_subsequence(&answer, &reference),
        answer.len(),
        reference.len(),
    )
}

/// Whether the words of `wanted` stand in `text` one after another.
pub(crate) fn contains_words(text: &str, wanted: &str) -> bool {
    let (text, wanted) = (normalized(text), normalized(wanted));
    !wanted.is_empty() && text.windows(wanted.len()).any(|window| window == wanted)
}

/// Length of the longest common subsequence.
fn common_subsequence<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

/// All integers of a text, digits with commas between thousands read as one.
pub(crate) fn integers(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let digit_at = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let mut numbers: Vec<String> = Vec::new();
    let mut inside = false;
    for (at, char) in chars.iter().enumerate() {
        if char.is_ascii_digit() {
            if !inside {
                numbers.push(String::new());
            }
            inside = true;
            if let Some(number) = numbers.last_mut() {
                number.push(*char);
            }
        } else {
            let thousands = *char == ','
                && inside
                && (1..=3).all(|ahead| digit_at(at + ahead))
                && !digit_at(at + 4);
            inside = thousands;
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, answer: &str, reference: &str) -> f64 {
        metric.score(answer, &[reference.to_owned()])
    }

    #[test]
    fn f1_ignores_articles_case_and_punctuation() {
        assert_eq!(score(Metric::F1, "The Cat!", "a cat"), 1.0);
        assert_eq!(score(Metric::F1, "cat cat", "cat"), 2.0 / 3.0);
        assert_eq!(score(Metric::F1, "dog", "cat"), 0.0);
        assert_eq!(score(Metric::F1, "", "cat"), 0.0);
        assert_eq!(
            Metric::F1.score("in paris", &["london".into(), "Paris".into()]),
            2.0 / 3.0
        );
    }

    #[test]
    fn rouge_l_follows_order() {
        assert_eq!(
            score(
                Metric::RougeL,
                "police kill the gunman",
                "police killed the gunman"
            ),
            0.75
        );
        assert_eq!(
            score(
                Metric::RougeL,
                "the gunman police killed",
                "police killed the gunman"
            ),
            0.5
        );
    }

    #[test]
    fn accuracy_wants_whole_words() {
        assert_eq!(
            score(Metric::Accuracy, "It is a Human number.", "human"),
            1.0
        );
        assert_eq!(score(Metric::Accuracy, "humanity", "human"), 0.0);
        assert_eq!(score(Metric::Accuracy, "anything", ""), 0.0);
    }

    #[test]
    fn code_is_compared_by_its_first_line() {
        assert_eq!(
            score(Metric::EditSimilarity, "# note\nreturn x\nmore", "return x"),
            1.0
        );
        assert_eq!(score(Metric::EditSimilarity, "abcd", "ab"), 4.0 / 6.0);
        assert_eq!(score(Metric::EditSimilarity, "", "ab"), 0.0);
    }

    #[test]
    fn integers_may_have_commas_between_thousands() {
        assert_eq!(integers("48,213 and 7"), ["48213", "7"]);
        assert_eq!(integers("12, 48213"), ["12", "48213"]);
        assert_eq!(
            integers("48,2134 4821 3 48.213"),
            ["48", "2134", "4821", "3", "48", "213"]
        );
        assert!(integers("none").is_empty());
    }
}
