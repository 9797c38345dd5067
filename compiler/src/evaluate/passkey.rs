//! Passkey retrieval by free generation: a five-digit number somewhere in a long text, asked for at the end.
//!
//! Nothing is shared with calibration but the engine: prompts, filler and seeds are others ([`super::essays`]), so a
//! plan is not tested on the sentences it was found with. The answer is what the model writes by itself, greedily; no
//! prefix of it is given, and it is right if the number stands in it.

use rand::Rng as _;

use super::essays::ESSAYS;
use crate::calibrate::builtin::at_depth;
use crate::calibrate::fit::{Stretch, fill};
use crate::calibrate::prose::Prose;
use crate::calibrate::{CalibrationError, Result, Sample, Tokenize, prompt_ids, seeded};

/// Tokens that a model may write for an answer: enough for a sentence around five digits.
pub const MAX_NEW_TOKENS: u32 = 32;

const DOMAIN: &str = "moa passkey evaluation 1";

/// Introduction, fact and question.
const FORMS: &[[&str; 3]] = &[
    [
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the important information there.",
        "The pass key is {number}. Remember it. {number} is the pass key.",
        "What is the pass key?",
    ],
    [
        "A special magic number is hidden within the following passage. Make sure to memorize it. I will quiz you about the number afterwards.",
        "The special magic number is {number}.",
        "What is the special magic number mentioned in the passage?",
    ],
];

/// One prompt and what its answer must contain.
#[derive(Debug, Clone, PartialEq)]
pub struct PasskeyTrial {
    /// The prompt up to where the model answers: the length asked for or a few tokens fewer.
    pub ids: Vec<u32>,
    /// The number, five digits.
    pub number: String,
    /// Where in the text it stands, 0 to 1.
    pub depth: f64,
}

impl PasskeyTrial {
    /// Whether an answer contains the number, as a number of its own. Thousands may be set off by a comma.
    pub fn is_right(&self, answer: &str) -> bool {
        let mut numbers = vec![String::new()];
        let chars: Vec<char> = answer.chars().collect();
        for (at, char) in chars.iter().enumerate() {
            let digit_at = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
            if char.is_ascii_digit() {
                if let Some(number) = numbers.last_mut() {
                    number.push(*char);
                }
            } else {
                let thousands = *char == ','
                    && at > 0
                    && digit_at(at - 1)
                    && (1..=3).all(|ahead| digit_at(at + ahead))
                    && !digit_at(at + 4);
                if !thousands {
                    numbers.push(String::new());
                }
            }
        }
        numbers.contains(&self.number)
    }
}

/// `count` trials with prompts of `prompt_tokens`; depths cover the text evenly, the numbers are random. The declared
/// context of a run is `prompt_tokens` + [`MAX_NEW_TOKENS`].
///
/// # Errors
///
/// A length that the question alone exceeds, a template that refuses the messages.
pub fn trials(
    tokenizer: &dyn Tokenize,
    prompt_tokens: u32,
    count: usize,
    seed: u64,
) -> Result<Vec<PasskeyTrial>> {
    (0..count)
        .map(|index| {
            let mut rng = seeded(DOMAIN, "passkey", prompt_tokens, seed, index);
            let prose = Prose::new(ESSAYS, rng.clone());
            rng.set_stream(1);
            #[expect(clippy::cast_precision_loss, reason = "a count of trials")]
            let depth = (index as f64 + rng.random::<f64>()) / count as f64;
            let number = rng.random_range(10_000..100_000_u32).to_string();
            let form = FORMS[rng.random_range(0..FORMS.len())];
            let mut prompt = Prompt {
                tokenizer,
                form,
                fact: form[1].replace("{number}", &number),
                depth,
                prose,
            };
            let sample = fill(&mut prompt, prompt_tokens as usize, |needed| {
                CalibrationError::LengthTooSmall {
                    kind: "passkey evaluation",
                    needed,
                    length: prompt_tokens,
                }
            })?;
            Ok(PasskeyTrial {
                ids: sample.ids,
                number,
                depth,
            })
        })
        .collect()
}

struct Prompt<'a> {
    tokenizer: &'a dyn Tokenize,
    form: [&'static str; 3],
    fact: String,
    depth: f64,
    prose: Prose,
}

impl Stretch for Prompt<'_> {
    fn stretched(&mut self, units: usize, words: usize) -> Result<Sample> {
        let [intro, _, question] = self.form;
        let at = at_depth(self.depth, units);
        let text = self.prose.text(units, words, Some((at, &self.fact)));
        let prompt = format!("{intro}\n\n{text}\n\n{question}");
        let ids = prompt_ids(self.tokenizer, &[("user", &prompt)])?;
        Ok(Sample {
            response_start: ids.len(),
            ids,
            kind: String::new(),
        })
    }

    fn max_words(&mut self, units: usize) -> usize {
        self.prose.words_after(units).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::calibrate::stories::STORIES;
    use crate::calibrate::tokenize::tests::Words;
    use crate::calibrate::{Kind, builtin};

    #[test]
    fn prompts_have_their_length_number_and_depth() {
        let words = Words::default();
        for tokens in [256, 1024, 3000] {
            let trials = trials(&words, tokens, 20, 5).unwrap();
            assert_eq!(trials.len(), 20);
            for trial in &trials {
                let got = trial.ids.len();
                assert!(
                    got <= tokens as usize && got + 6 > tokens as usize,
                    "{got} of {tokens}"
                );
                assert!(trial.number.len() == 5 && trial.number.parse::<u32>().is_ok());
                // The tokenizer of these tests cuts after four characters.
                let head = words.encode(&trial.number[..4], false).unwrap()[0];
                let at = trial.ids.iter().position(|id| *id == head).unwrap();
                if tokens > 1000 {
                    #[expect(clippy::cast_precision_loss, reason = "a few thousand tokens")]
                    let place = at as f64 / f64::from(tokens);
                    assert!(
                        (place - trial.depth).abs() < 0.12,
                        "{place} for {}",
                        trial.depth
                    );
                }
            }
            let depths = |range: std::ops::Range<f64>| {
                trials
                    .iter()
                    .filter(|trial| range.contains(&trial.depth))
                    .count()
            };
            assert_eq!(
                (depths(0.0..0.25), depths(0.25..0.5), depths(0.5..1.0)),
                (5, 5, 10)
            );
            let numbers: BTreeSet<&str> = trials.iter().map(|trial| &trial.number[..]).collect();
            assert!(numbers.len() >= 19);
        }
        assert_eq!(
            trials(&words, 512, 3, 1).unwrap(),
            trials(&words, 512, 3, 1).unwrap()
        );
        assert_ne!(
            trials(&words, 512, 3, 1).unwrap(),
            trials(&words, 512, 3, 2).unwrap()
        );
        assert!(matches!(
            trials(&words, 20, 1, 1),
            Err(CalibrationError::LengthTooSmall { length: 20, .. })
        ));
    }

    #[test]
    fn only_the_number_itself_is_right() {
        let trial = PasskeyTrial {
            ids: Vec::new(),
            number: "48213".into(),
            depth: 0.5,
        };
        for right in [
            "The pass key is 48213.",
            "48213",
            "48,213",
            "It is **48213**, I think",
            "first 11111, then 48213",
            "12, 48213",
        ] {
            assert!(trial.is_right(right), "{right}");
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
            assert!(!trial.is_right(wrong), "{wrong}");
        }
    }

    /// Runs of five words, the numbers among them left out.
    fn runs(text: &str) -> BTreeSet<Vec<String>> {
        let words: Vec<String> = text
            .split(|char: char| !char.is_alphanumeric())
            .filter(|word| !word.is_empty() && !word.chars().all(|char| char.is_ascii_digit()))
            .map(str::to_lowercase)
            .collect();
        words.windows(5).map(<[String]>::to_vec).collect()
    }

    #[test]
    fn evaluation_shares_no_sentences_words_or_numbers_with_calibration() {
        let mut essays = String::new();
        let mut stories = String::new();
        for seed in 0..6 {
            essays += &Prose::new(ESSAYS, seeded("test", "", 0, seed, 0)).text(800, 0, None);
            stories += &Prose::new(STORIES, seeded("test", "", 0, seed, 0)).text(800, 0, None);
        }
        let shared: Vec<_> = runs(&essays)
            .intersection(&runs(&stories))
            .cloned()
            .collect();
        assert!(shared.is_empty(), "{shared:?}");
        assert!(!essays.contains(['{', '}']) && !essays.contains("  "));
        let lists = |lexicon: crate::calibrate::prose::Lexicon| -> BTreeSet<&'static str> {
            let lists = [
                lexicon.names,
                lexicon.jobs,
                lexicon.towns,
                lexicon.things,
                lexicon.templates,
            ];
            let slots = lexicon.slots.iter().map(|(_, words)| *words);
            lists.into_iter().chain(slots).flatten().copied().collect()
        };
        assert_eq!(lists(ESSAYS).intersection(&lists(STORIES)).count(), 0);

        // The same seed number draws unrelated numbers.
        let words = Words::default();
        let ids = |samples: Vec<Sample>| -> BTreeSet<u32> {
            samples.into_iter().flat_map(|sample| sample.ids).collect()
        };
        let calibration = ids(builtin::samples(&[Kind::Passkey], &words, 400, 8, 3).unwrap());
        for trial in trials(&words, 400, 8, 3).unwrap() {
            let digits = words.encode(&trial.number, false).unwrap();
            assert!(
                !digits.iter().all(|id| calibration.contains(id)),
                "{}",
                trial.number
            );
        }
    }
}
