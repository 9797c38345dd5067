//! One trial: a prompt that every method gets, and what a right answer is.
//!
//! The headline is what the model writes by itself, greedily, with nothing given of the answer. Beside it stands the
//! likelihood of a right answer, teacher-forced, which tells methods apart where all or none of them answer.

use serde::{Deserialize, Serialize};

use super::metrics::{Metric, contains_words, integers};

/// What is asked of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Family {
    /// A five-digit number somewhere in a long text.
    Passkey,
    /// A sentence of its own in a long text.
    Needle,
    /// One of several facts of the same form.
    Multikey,
    /// A fact that only another fact leads to.
    Twohop,
    /// One of many lines of names and values.
    Lines,
    /// The loss on a text.
    Perplexity,
    /// The divergence from the dense model on a text.
    Kl,
    /// Whether the model writes on as the dense model does.
    Agreement,
    /// Records of a file.
    Longbench,
}

impl Family {
    /// Every family that needs no file.
    pub(crate) const BUILTIN: [Self; 8] = [
        Self::Passkey,
        Self::Needle,
        Self::Multikey,
        Self::Twohop,
        Self::Lines,
        Self::Perplexity,
        Self::Kl,
        Self::Agreement,
    ];

    /// The name on the command line and in results.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Passkey => "passkey",
            Self::Needle => "needle",
            Self::Multikey => "multikey",
            Self::Twohop => "twohop",
            Self::Lines => "lines",
            Self::Perplexity => "perplexity",
            Self::Kl => "kl",
            Self::Agreement => "agreement",
            Self::Longbench => "longbench",
        }
    }

    /// Whether it looks for something far back, and counts in the pooled retrieval score.
    pub(crate) const fn is_retrieval(self) -> bool {
        matches!(
            self,
            Self::Passkey | Self::Needle | Self::Multikey | Self::Twohop | Self::Lines
        )
    }

    /// Whether the model reads a text and writes nothing.
    pub(crate) const fn is_text(self) -> bool {
        matches!(self, Self::Perplexity | Self::Kl)
    }

    /// Whether a score is 0 or 1.
    pub(crate) const fn is_binary(self) -> bool {
        self.is_retrieval()
    }
}

/// When an answer is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// The number stands in the answer, as a number of its own.
    Number(String),
    /// The number is the last one of the answer.
    LastNumber(String),
    /// Each of these stands in the answer, as whole words.
    Words(Vec<String>),
    /// The metric's score against these references.
    Metric(Metric, Vec<String>),
    /// The share of the dense model's tokens that come first, in order.
    LikeDense,
    /// Nothing is written.
    Silent,
}

impl Check {
    /// The score of an answer, 0 to 1. `LikeDense` and `Silent` are scored elsewhere.
    pub(crate) fn score(&self, answer: &str) -> f64 {
        match self {
            Self::Number(number) => f64::from(integers(answer).contains(number)),
            Self::LastNumber(number) => f64::from(integers(answer).last() == Some(number)),
            Self::Words(words) => f64::from(words.iter().all(|word| contains_words(answer, word))),
            Self::Metric(metric, references) => metric.score(answer, references),
            Self::LikeDense | Self::Silent => 0.0,
        }
    }

    /// Whether `answer`, cut off here, is right whatever would follow.
    pub(crate) fn is_decided(&self, answer: &str) -> bool {
        let ended = answer.ends_with(|last: char| !last.is_ascii_digit() && last != ',');
        match self {
            Self::Number(_) => ended && self.score(answer) == 1.0,
            _ => false,
        }
    }

    /// What should have been written, for people.
    pub(crate) fn expected(&self) -> Vec<String> {
        match self {
            Self::Number(number) | Self::LastNumber(number) => vec![number.clone()],
            Self::Words(words) => words.clone(),
            Self::Metric(_, references) => references.clone(),
            Self::LikeDense | Self::Silent => Vec::new(),
        }
    }
}

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trial {
    pub(crate) family: Family,
    /// Number of the trial among those of its family and length.
    pub(crate) index: usize,
    /// The prompt up to where the model answers, or a text.
    pub(crate) ids: Vec<u32>,
    /// A right answer as the model would write it; its tokens are teacher-forced. For a text: none.
    pub(crate) gold: Vec<u32>,
    pub(crate) check: Check,
    /// Where in the text the fact stands, 0 to 1, if there is one.
    pub(crate) depth: Option<f64>,
    /// Tokens that the model may write.
    pub(crate) max_new: u32,
    /// Which data set the trial is from, for records of a file.
    pub(crate) source: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_itself_is_right() {
        let check = Check::Number("48213".into());
        for right in [
            "The pass key is 48213.",
            "48213",
            "48,213",
            "It is **48213**, I think",
            "first 11111, then 48213",
            "12, 48213",
        ] {
            assert_eq!(check.score(right), 1.0, "{right}");
        }
        for wrong in [
            "",
            "The pass key is 48214.",
            "482130",
            "148213",
            "4821 3",
            "48.213",
            "48,2134",
        ] {
            assert_eq!(check.score(wrong), 0.0, "{wrong}");
        }
        assert!(!check.is_decided("48213") && check.is_decided("48213 "));
        assert!(!check.is_decided("48213,"));
    }

    #[test]
    fn lines_count_the_last_number_and_needles_every_word() {
        let last = Check::LastNumber("11".into());
        assert_eq!(last.score("7 or 11"), 1.0);
        assert_eq!(last.score("11 or 7"), 0.0);
        let words = Check::Words(vec!["brass".into(), "astrolabe".into()]);
        assert_eq!(words.score("A Brass astrolabe."), 1.0);
        assert_eq!(words.score("An astrolabe."), 0.0);
    }
}
