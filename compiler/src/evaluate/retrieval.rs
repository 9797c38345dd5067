//! Questions about facts in a long text: passkey, needle, several keys, two hops.
//!
//! Nothing is shared with calibration but the engine that fills a prompt to its length: forms, filler and seeds are
//! others. Two hops and several keys are families that neither calibration nor the choice of a plan ever sees.

use rand::Rng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::haystack::{Haystack, Sentences};
use super::trial::{Check, Family, Trial};
use crate::calibrate::fit::{Stretch, fill};
use crate::calibrate::prose::pick;
use crate::calibrate::{
    CalibrationError, Result, Sample, Tokenize, prompt_ids, response_ids, seeded,
};

/// Tokens that a model may write for an answer: enough for a sentence around five digits.
pub(crate) const MAX_NEW_TOKENS: u32 = 32;

/// Facts of the same form in a prompt with several keys, the one that is asked for included.
const KEYS: usize = 4;
/// Pairs of facts in a prompt with two hops.
const PAIRS: usize = 2;

/// Introduction, fact, question, answer.
const PASSKEYS: &[[&str; 4]] = &[
    [
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the important information there.",
        "The pass key is {number}. Remember it. {number} is the pass key.",
        "What is the pass key?",
        "The pass key is {number}.",
    ],
    [
        "A special magic number is hidden within the following passage. Make sure to memorize it. I will quiz you about the number afterwards.",
        "The special magic number is {number}.",
        "What is the special magic number mentioned in the passage?",
        "The special magic number is {number}.",
    ],
];

const PASSAGE_INTRO: &str = "I will give you a passage and then ask one question about it. The answer is stated in the passage.";
/// After the question: small models otherwise sum the passage up.
const PASSAGE_OUTRO: &str = "Answer this question with one short sentence and nothing else.";

/// Fact, question, answer, and what the answer must contain, separated by bars.
const NEEDLES: &[[&str; 4]] = &[
    [
        "The prize exhibit of the museum in {place} is a {matter} {object}.",
        "What is the prize exhibit of the museum in {place}?",
        "The prize exhibit of the museum in {place} is a {matter} {object}.",
        "{matter}|{object}",
    ],
    [
        "{person} drinks nothing but {drink} for breakfast.",
        "What does {person} drink for breakfast?",
        "{person} drinks {drink}.",
        "{drink}",
    ],
    [
        "The committee on {topic} has moved its next session to {day} at {hour} o'clock.",
        "To which day and hour was the next session of the committee on {topic} moved?",
        "It was moved to {day} at {hour} o'clock.",
        "{day}|{hour}",
    ],
    [
        "Whoever wants to cross the bridge at {place} must first hand over one {object}.",
        "What must be handed over before crossing the bridge at {place}?",
        "One must first hand over one {object}.",
        "{object}",
    ],
    [
        "{person} wrote a doctoral thesis about {topic} and has regretted it ever since.",
        "What was the doctoral thesis of {person} about?",
        "The thesis was about {topic}.",
        "{topic}",
    ],
];

/// Fact, question, answer.
const KEYED: &[[&str; 3]] = &[
    [
        "The access number of the {object} room is {number}.",
        "What is the access number of the {object} room?",
        "The access number of the {object} room is {number}.",
    ],
    [
        "In the ledger, {person} stands under number {number}.",
        "Under which number does {person} stand in the ledger?",
        "{person} stands under number {number}.",
    ],
];

/// First fact, second fact, question, answer.
const HOPS: &[[&str; 4]] = &[
    [
        "{person} has left all papers with the notary in {place}.",
        "The notary in {place} stores everything under deposit number {number}.",
        "Under which deposit number are the papers of {person} stored?",
        "The papers are stored under deposit number {number}.",
    ],
    [
        "The {object} on the balcony belongs to {person}.",
        "{person} lives in apartment {number}.",
        "In which apartment lives the owner of the {object} on the balcony?",
        "The owner lives in apartment {number}.",
    ],
];

const PLACES: &[&str] = &[
    "Antofagasta",
    "Trondheim",
    "Samarkand",
    "Dunedin",
    "Salzburg",
    "Kanazawa",
    "Timbuktu",
    "Odense",
    "Galway",
    "Arequipa",
    "Yerevan",
    "Mombasa",
    "Halifax",
    "Lucca",
];
const PERSONS: &[&str] = &[
    "Aunt Josephine",
    "Uncle Barnaby",
    "Mister Oyelaran",
    "Miss Benedetti",
    "Grandmother Ruth",
    "Cousin Leopold",
    "Mister Ferreira",
    "Miss Halvorsen",
    "Nurse Abigail",
    "Colonel Hathaway",
    "Sister Philomena",
    "Mister Nakamura",
];
const OBJECTS: &[&str] = &[
    "astrolabe",
    "accordion",
    "chandelier",
    "typewriter",
    "kaleidoscope",
    "metronome",
    "rocking horse",
    "weathervane",
    "hourglass",
    "birdcage",
    "snow globe",
    "mandolin",
];
const MATTERS: &[&str] = &[
    "bronze",
    "jade",
    "walnut",
    "porcelain",
    "pewter",
    "leather",
    "marble",
    "copper",
];
const DRINKS: &[&str] = &[
    "cocoa",
    "jasmine tea",
    "espresso",
    "hot cider",
    "buttermilk",
    "eggnog",
];
const TOPICS: &[&str] = &[
    "street lighting",
    "roller skates",
    "noise at night",
    "vending machines",
    "crossword puzzles",
    "public fountains",
    "lost luggage",
    "carnival masks",
];
const DAYS: &[&str] = &[
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const HOURS: &[&str] = &[
    "seven", "eight", "nine", "ten", "eleven", "four", "five", "six",
];

/// Words for the slots of one fact, drawn without repetition within a trial.
struct Draws {
    places: Vec<&'static str>,
    persons: Vec<&'static str>,
    objects: Vec<&'static str>,
    rng: ChaCha8Rng,
}

impl Draws {
    fn new(mut rng: ChaCha8Rng) -> Self {
        let mut shuffled = |words: &[&'static str]| {
            let mut words = words.to_vec();
            words.shuffle(&mut rng);
            words
        };
        let (places, persons, objects) = (shuffled(PLACES), shuffled(PERSONS), shuffled(OBJECTS));
        Self {
            places,
            persons,
            objects,
            rng,
        }
    }

    /// The slots of the next fact with their words.
    fn next(&mut self) -> Vec<(&'static str, String)> {
        let own = |words: &mut Vec<&'static str>| words.pop().unwrap_or("nobody").to_owned();
        let (place, person) = (own(&mut self.places), own(&mut self.persons));
        let object = own(&mut self.objects);
        let mut any = |words: &[&'static str]| pick(words, &mut self.rng).to_owned();
        let mut slots = vec![
            ("{place}", place),
            ("{person}", person),
            ("{object}", object),
            ("{matter}", any(MATTERS)),
            ("{drink}", any(DRINKS)),
            ("{topic}", any(TOPICS)),
            ("{day}", any(DAYS)),
            ("{hour}", any(HOURS)),
        ];
        let number = self.rng.random_range(10_000..100_000_u32);
        slots.push(("{number}", number.to_string()));
        slots
    }
}

fn filled(form: &str, slots: &[(&'static str, String)]) -> String {
    slots.iter().fold(form.to_owned(), |text, (slot, word)| {
        text.replace(slot, word)
    })
}

/// A question with its facts, before the filler.
struct Asked {
    intro: String,
    /// Depth and fact.
    facts: Vec<(f64, String)>,
    question: String,
    /// What follows the question, with the space before it.
    outro: String,
    answer: String,
    check: Check,
    depth: f64,
}

fn asked(family: Family, depth: f64, mut rng: ChaCha8Rng) -> Asked {
    if family == Family::Passkey {
        // The order of draws is that of the first version of this suite: its trials stay as they were.
        let number = rng.random_range(10_000..100_000_u32).to_string();
        let form = PASSKEYS[rng.random_range(0..PASSKEYS.len())];
        let [intro, fact, question, answer] = form.map(|text| text.replace("{number}", &number));
        return Asked {
            intro,
            facts: vec![(depth, fact)],
            question,
            outro: String::new(),
            answer,
            check: Check::Number(number),
            depth,
        };
    }
    let mut others: Vec<f64> = (0..KEYS).map(|_| rng.random()).collect();
    let (needle, keyed, hops) = (
        NEEDLES[rng.random_range(0..NEEDLES.len())],
        KEYED[rng.random_range(0..KEYED.len())],
        HOPS[rng.random_range(0..HOPS.len())],
    );
    let mut draws = Draws::new(rng);
    let slots = draws.next();
    let number = || {
        let (_, number) = &slots[slots.len() - 1];
        Check::Number(number.clone())
    };
    let (facts, question, answer, check) = match family {
        Family::Multikey => {
            let [fact, question, answer] = keyed;
            let mut facts = vec![(depth, filled(fact, &slots))];
            others.truncate(KEYS - 1);
            facts.extend(
                others
                    .into_iter()
                    .map(|at| (at, filled(fact, &draws.next()))),
            );
            (
                facts,
                filled(question, &slots),
                filled(answer, &slots),
                number(),
            )
        }
        Family::Twohop => {
            let [first, second, question, answer] = hops;
            // The second fact stands somewhere else in the text, before the first as often as after it.
            let mut facts = vec![
                (depth, filled(first, &slots)),
                (others[0], filled(second, &slots)),
            ];
            for pair in others[1..].chunks_exact(2).take(PAIRS - 1) {
                let slots = draws.next();
                facts.push((pair[0], filled(first, &slots)));
                facts.push((pair[1], filled(second, &slots)));
            }
            (
                facts,
                filled(question, &slots),
                filled(answer, &slots),
                number(),
            )
        }
        _ => {
            let [fact, question, answer, wanted] = needle;
            let wanted = filled(wanted, &slots);
            let check = Check::Words(wanted.split('|').map(ToOwned::to_owned).collect());
            (
                vec![(depth, filled(fact, &slots))],
                filled(question, &slots),
                filled(answer, &slots),
                check,
            )
        }
    };
    Asked {
        intro: PASSAGE_INTRO.to_owned(),
        facts,
        question: format!("Question: {question}"),
        outro: format!(" {PASSAGE_OUTRO}"),
        answer,
        check,
        depth,
    }
}

/// `count` trials of a retrieval family with prompts of `prompt_tokens`, in `text` or in essays; depths cover the text
/// evenly. The declared context of a run is `prompt_tokens` + [`MAX_NEW_TOKENS`].
///
/// # Errors
///
/// A length that the question alone exceeds, a template that refuses the messages.
pub(crate) fn trials(
    family: Family,
    tokenizer: &dyn Tokenize,
    text: Option<&Sentences>,
    prompt_tokens: u32,
    count: usize,
    seed: u64,
) -> Result<Vec<Trial>> {
    let domain = match family {
        Family::Passkey => "moa passkey evaluation 1",
        _ => "moa retrieval evaluation 1",
    };
    (0..count)
        .into_par_iter()
        .map(|index| {
            let mut rng = seeded(domain, family.name(), prompt_tokens, seed, index);
            let hay = Haystack::new(text, rng.clone());
            rng.set_stream(1);
            let depth = (index as f64 + rng.random::<f64>()) / count as f64;
            let asked = asked(family, depth, rng);
            let mut prompt = Prompt {
                tokenizer,
                asked: &asked,
                hay,
            };
            let sample = fill(&mut prompt, prompt_tokens as usize, |needed| {
                CalibrationError::LengthTooSmall {
                    kind: family.name(),
                    needed,
                    length: prompt_tokens,
                }
            })?;
            let content = prompt.content(0, 0);
            let gold = response_ids(tokenizer, &[("user", &content)], &asked.answer)?;
            Ok(Trial {
                family,
                index,
                ids: sample.ids,
                gold,
                check: asked.check.clone(),
                depth: Some(asked.depth),
                max_new: MAX_NEW_TOKENS,
                source: None,
            })
        })
        .collect()
}

struct Prompt<'a> {
    tokenizer: &'a dyn Tokenize,
    asked: &'a Asked,
    hay: Haystack<'a>,
}

impl Prompt<'_> {
    fn content(&mut self, units: usize, words: usize) -> String {
        let text = self.hay.text(units, words, &self.asked.facts);
        let Asked {
            intro,
            question,
            outro,
            ..
        } = self.asked;
        format!("{intro}\n\n{text}\n\n{question}{outro}")
    }
}

impl Stretch for Prompt<'_> {
    fn stretched(&mut self, units: usize, words: usize) -> Result<Sample> {
        let content = self.content(units, words);
        let ids = prompt_ids(self.tokenizer, &[("user", &content)])?;
        Ok(Sample {
            response_start: ids.len(),
            ids,
            kind: String::new(),
        })
    }

    fn max_words(&mut self, units: usize) -> usize {
        self.hay.words_after(units).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::essays::ESSAYS;
    use super::*;
    use crate::calibrate::prose::Prose;
    use crate::calibrate::questions::SLOTS;
    use crate::calibrate::stories::STORIES;
    use crate::calibrate::tokenize::tests::Words;
    use crate::calibrate::{Kind, builtin};

    const FAMILIES: [Family; 4] = [
        Family::Passkey,
        Family::Needle,
        Family::Multikey,
        Family::Twohop,
    ];

    #[test]
    fn prompts_have_their_length_and_their_facts() {
        let words = Words::default();
        for family in FAMILIES {
            for tokens in [512, 1024, 3000] {
                let trials = trials(family, &words, None, tokens, 20, 5).unwrap();
                assert_eq!(trials.len(), 20);
                for trial in &trials {
                    let got = trial.ids.len();
                    assert!(
                        got <= tokens as usize && got + 6 > tokens as usize,
                        "{family:?}: {got} of {tokens}"
                    );
                    // The tokenizer of these tests cuts after four characters.
                    for expected in trial.check.expected() {
                        let head: String = expected.chars().take(4).collect();
                        let head = words.encode(&head, false).unwrap()[0];
                        assert!(trial.ids.contains(&head), "{family:?}: {expected}");
                        assert!(trial.gold.contains(&head), "{family:?}: {expected}");
                    }
                }
                let early = trials
                    .iter()
                    .filter(|trial| trial.depth.unwrap() < 0.25)
                    .count();
                assert_eq!(early, 5);
            }
            let run = |seed| trials(family, &words, None, 600, 3, seed).unwrap();
            assert_eq!(run(1), run(1));
            assert_ne!(run(1), run(2));
            assert!(matches!(
                trials(family, &words, None, 20, 1, 1),
                Err(CalibrationError::LengthTooSmall { length: 20, .. })
            ));
        }
    }

    #[test]
    fn every_gold_answer_is_right_and_no_distractor_is() {
        for family in FAMILIES {
            for seed in 0..200 {
                let asked = asked(family, 0.5, seeded("test", "", 0, seed, 0));
                assert_eq!(asked.check.score(&asked.answer), 1.0, "{}", asked.answer);
                assert!(!asked.answer.contains('{') && !asked.question.contains('{'));
                assert_eq!(
                    asked.check.score(&asked.question),
                    0.0,
                    "{}",
                    asked.question
                );
                let holding = asked
                    .facts
                    .iter()
                    .filter(|(_, fact)| asked.check.score(fact) == 1.0)
                    .count();
                assert_eq!(holding, 1, "{:?}", asked.facts);
                assert!(asked.facts.iter().all(|(_, fact)| !fact.contains("nobody")));
            }
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

        // Nor do the facts: no name, no thing, no title's surname.
        let words = |text: &'static str| [text, text.rsplit(' ').next().unwrap_or(text)];
        let asked = [
            PLACES, PERSONS, OBJECTS, MATTERS, DRINKS, TOPICS, DAYS, HOURS,
        ];
        let asked: BTreeSet<&str> = asked
            .into_iter()
            .flatten()
            .copied()
            .flat_map(words)
            .collect();
        let known = SLOTS.iter().flat_map(|(_, words)| words.iter()).copied();
        let known: BTreeSet<&str> = known.flat_map(words).collect();
        assert_eq!(
            asked.intersection(&known).collect::<Vec<_>>(),
            [] as [&&str; 0]
        );

        // The same seed number draws unrelated numbers.
        let words = Words::default();
        let ids = |samples: Vec<Sample>| -> BTreeSet<u32> {
            samples.into_iter().flat_map(|sample| sample.ids).collect()
        };
        let calibration = ids(builtin::samples(&[Kind::Passkey], &words, 400, 8, 3).unwrap());
        for trial in trials(Family::Passkey, &words, None, 400, 8, 3).unwrap() {
            let digits = words.encode(&trial.check.expected()[0], false).unwrap();
            assert!(
                !digits.iter().all(|id| calibration.contains(id)),
                "{:?}",
                trial.check
            );
        }
    }
}
