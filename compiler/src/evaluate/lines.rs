//! Line retrieval after `LongEval`: adjective-noun keys, five-digit values, the question last.
//!
//! The protocol's own words are kept, so that figures compare; its answer is the last integer of what the model writes.
//! Keys share no word with calibration's lines.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::trial::{Check, Family, Trial};
use crate::calibrate::builtin::at_depth;
use crate::calibrate::fit::{Stretch, fill};
use crate::calibrate::prose::pick;
use crate::calibrate::{
    CalibrationError, Result, Sample, Tokenize, prompt_ids, response_ids, seeded,
};

/// Tokens that a model may write: the protocol's answers are a sentence.
pub(crate) const MAX_NEW_TOKENS: u32 = 48;

const INTRO: &str = "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a '<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of a certain line index. Now the record start:";

const ADJECTIVES: &[&str] = &[
    "torpid", "lush", "verdant", "obtuse", "puffy", "sable", "wiry", "nimble", "gaudy", "somber",
    "stale", "glossy", "hollow", "irate", "jagged", "knotty", "lanky", "mighty", "nasal", "oblong",
    "prim", "quirky", "rowdy", "sleek", "tepid", "uneven", "vague", "woolly", "yawning", "zealous",
    "abrupt", "bleak", "cagey", "drowsy", "elfin", "feisty", "grumpy", "hasty", "icy", "jovial",
    "lavish", "murky", "nifty", "ornate", "perky", "rancid", "shaky", "thorny", "uptight", "vivid",
];
const NOUNS: &[&str] = &[
    "kid",
    "monitor",
    "orator",
    "lobster",
    "pajama",
    "cortex",
    "boulevard",
    "cactus",
    "drummer",
    "eclipse",
    "flannel",
    "gazebo",
    "harvest",
    "icicle",
    "jockey",
    "kettle",
    "lantern",
    "mitten",
    "nozzle",
    "obelisk",
    "parsnip",
    "quartet",
    "radish",
    "sandal",
    "trumpet",
    "urchin",
    "violet",
    "walrus",
    "xylophone",
    "yogurt",
    "zipper",
    "acorn",
    "bagel",
    "crater",
    "dolphin",
    "elbow",
    "fiddle",
    "goblet",
    "hatchet",
    "inkwell",
    "juggler",
    "kiosk",
    "llama",
    "muffin",
    "napkin",
    "oyster",
    "piston",
    "rudder",
    "spinach",
    "tractor",
];

/// An endless record with distinct keys.
#[derive(Debug)]
struct Record {
    rng: ChaCha8Rng,
    keys: BTreeSet<String>,
    lines: Vec<String>,
}

impl Record {
    fn next_pair(&mut self) -> (String, String) {
        let mut key = format!(
            "{}-{}",
            pick(ADJECTIVES, &mut self.rng),
            pick(NOUNS, &mut self.rng)
        );
        while self.keys.contains(&key) {
            key = format!("{key}-{}", pick(NOUNS, &mut self.rng));
        }
        self.keys.insert(key.clone());
        (key, self.rng.random_range(10_000..100_000_u32).to_string())
    }

    fn line(key: &str, value: &str) -> String {
        format!("line {key}: REGISTER_CONTENT is <{value}>")
    }

    fn text(&mut self, count: usize, at: usize, wanted: &str) -> String {
        while self.lines.len() < count {
            let (key, value) = self.next_pair();
            self.lines.push(Self::line(&key, &value));
        }
        let (before, after) = self.lines[..count].split_at(at.min(count));
        let lines = before
            .iter()
            .map(String::as_str)
            .chain([wanted])
            .chain(after.iter().map(String::as_str));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// `count` trials with prompts of `prompt_tokens`, or up to a line fewer. The declared context of a run is
/// `prompt_tokens` + [`MAX_NEW_TOKENS`].
///
/// # Errors
///
/// A length that the question alone exceeds, a template that refuses the messages.
pub(crate) fn trials(
    tokenizer: &dyn Tokenize,
    prompt_tokens: u32,
    count: usize,
    seed: u64,
) -> Result<Vec<Trial>> {
    (0..count)
        .into_par_iter()
        .map(|index| {
            let mut rng = seeded(
                "moa lines evaluation 1",
                "lines",
                prompt_tokens,
                seed,
                index,
            );
            let depth = (index as f64 + rng.random::<f64>()) / count as f64;
            let mut record = Record {
                rng,
                keys: BTreeSet::new(),
                lines: Vec::new(),
            };
            let (key, value) = record.next_pair();
            let mut prompt = Prompt {
                tokenizer,
                record,
                key: &key,
                value: &value,
                depth,
            };
            let sample = fill(&mut prompt, prompt_tokens as usize, |needed| {
                CalibrationError::LengthTooSmall {
                    kind: Family::Lines.name(),
                    needed,
                    length: prompt_tokens,
                }
            })?;
            let answer = format!("The <REGISTER_CONTENT> in line {key} is <{value}>.");
            let gold = response_ids(tokenizer, &[("user", &prompt.content(0))], &answer)?;
            Ok(Trial {
                family: Family::Lines,
                index,
                ids: sample.ids,
                gold,
                check: Check::LastNumber(value.clone()),
                depth: Some(depth),
                max_new: MAX_NEW_TOKENS,
                source: None,
            })
        })
        .collect()
}

struct Prompt<'a> {
    tokenizer: &'a dyn Tokenize,
    record: Record,
    key: &'a str,
    value: &'a str,
    depth: f64,
}

impl Prompt<'_> {
    fn content(&mut self, units: usize) -> String {
        let at = at_depth(self.depth, units);
        let wanted = Record::line(self.key, self.value);
        let record = self.record.text(units, at, &wanted);
        format!(
            "{INTRO}\n\n{record}\n\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {}? I need the number.",
            self.key
        )
    }
}

impl Stretch for Prompt<'_> {
    fn stretched(&mut self, units: usize, _words: usize) -> Result<Sample> {
        let content = self.content(units);
        let ids = prompt_ids(self.tokenizer, &[("user", &content)])?;
        Ok(Sample {
            response_start: ids.len(),
            ids,
            kind: String::new(),
        })
    }

    fn max_words(&mut self, _units: usize) -> usize {
        // The protocol has nothing between lines and question: the prompt stays up to a line short.
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::tokenize::tests::Words;

    #[test]
    fn records_have_distinct_keys_and_the_asked_line_at_its_depth() {
        let words = Words::default();
        for tokens in [600, 4096] {
            let trials = trials(&words, tokens, 10, 1).unwrap();
            for trial in &trials {
                let got = trial.ids.len();
                assert!(
                    got <= tokens as usize && got + 24 > tokens as usize,
                    "{got} of {tokens}"
                );
                assert_eq!(trial.check.expected().len(), 1);
            }
        }
        let mut record = Record {
            rng: seeded("test", "", 0, 0, 0),
            keys: BTreeSet::new(),
            lines: Vec::new(),
        };
        let text = record.text(4000, 17, "line asked: here");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[17]), (4001, "line asked: here"));
        assert_eq!(record.keys.len(), 4000);
    }

    #[test]
    fn keys_share_no_word_with_calibration() {
        let calibration = include_str!("../calibrate/lines.rs");
        for word in ADJECTIVES.iter().chain(NOUNS) {
            assert!(!calibration.contains(&format!("\"{word}\"")), "{word}");
        }
    }
}
