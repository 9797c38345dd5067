//! Facts for a text, each with a question and its answer.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::prose::{Person, pick};

/// Everything around the filler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// What the prompt says first.
    pub(crate) intro: String,
    /// What stands in the filler.
    pub(crate) fact: String,
    /// What the prompt asks last.
    pub(crate) question: String,
    /// The right answer, as a sentence.
    pub(crate) answer: String,
}

const INTROS: &[&str] = &[
    "Read the following text. There is a question about it at the end.",
    "Below is a long story. Answer the question that follows it.",
    "Please study this text carefully and then answer one question.",
    "I will show you a chronicle of several towns. Afterwards I will ask you something about it.",
    "Use only the text below to answer the question after it.",
];

/// Fact, question and answer.
const NEEDLES: &[[&str; 3]] = &[
    [
        "The best thing to do in {city} is to eat {fruit} on the roof of the {building}.",
        "What is the best thing to do in {city}?",
        "The best thing to do in {city} is to eat {fruit} on the roof of the {building}.",
    ],
    [
        "The secret ingredient of the famous sauce from {city} is {spice}.",
        "What is the secret ingredient of the famous sauce from {city}?",
        "The secret ingredient of the famous sauce from {city} is {spice}.",
    ],
    [
        "{who} hid the key to the cellar inside the {building}, under a {color} stone.",
        "Where did {who} hide the key to the cellar?",
        "{who} hid the key to the cellar inside the {building}, under a {color} stone.",
    ],
    [
        "The kite festival of {city} begins every year on {month} {day}.",
        "On which date does the kite festival of {city} begin?",
        "The kite festival of {city} begins on {month} {day}.",
    ],
    [
        "Of all colors, {who} likes {color} best.",
        "Which color does {who} like best?",
        "{who} likes {color} best.",
    ],
    [
        "The guards of {city} open the gate only to those who say \"{spice} and {fruit}\".",
        "What must one say so that the guards of {city} open the gate?",
        "One must say \"{spice} and {fruit}\".",
    ],
    [
        "Doctor {surname} has been keeping exactly {number} turtles in the {building}.",
        "How many turtles does Doctor {surname} keep?",
        "Doctor {surname} keeps {number} turtles.",
    ],
    [
        "Professor {surname} dropped a {color} umbrella in {city} and never got it back.",
        "What did Professor {surname} drop, and where?",
        "Professor {surname} dropped a {color} umbrella in {city}.",
    ],
    [
        "{who} plans to open a {building} in {city} as soon as {month} comes.",
        "What does {who} plan to open, and in which city?",
        "{who} plans to open a {building} in {city}.",
    ],
    [
        "The winner of the pie contest in {city} was Captain {surname}, with a pie of {fruit}.",
        "Who won the pie contest in {city}?",
        "Captain {surname} won the pie contest in {city}.",
    ],
];

const CODES: &[[&str; 3]] = &[
    [
        "The code of the vault is {code}. Keep it in mind: {code} opens the vault.",
        "What is the code of the vault?",
        "The code of the vault is {code}.",
    ],
    [
        "Please note that the locker combination of {who} is {code}.",
        "What is the locker combination of {who}?",
        "The locker combination of {who} is {code}.",
    ],
    [
        "The engine in {city} carries the serial number {code}.",
        "Which serial number does the engine in {city} carry?",
        "The engine in {city} carries the serial number {code}.",
    ],
    [
        "Do not forget the PIN for the alarm. The PIN is {code}.",
        "What is the PIN for the alarm?",
        "The PIN is {code}.",
    ],
    [
        "Captain {surname} can be reached under the telephone number {code}.",
        "Under which telephone number can Captain {surname} be reached?",
        "Captain {surname} can be reached under {code}.",
    ],
    [
        "The case against Doctor {surname} was filed under reference {code}.",
        "Under which reference was the case against Doctor {surname} filed?",
        "The case was filed under reference {code}.",
    ],
];

const STARTS: &[[&str; 3]] = &[
    [
        "This story begins with Captain {surname}, who came to {city} in {month} with {number} dollars.",
        "With how many dollars did Captain {surname} come to {city} at the beginning of the text?",
        "Captain {surname} came to {city} with {number} dollars.",
    ],
    [
        "Before anything else: Professor {surname} was born in {city} and studied {spice} for {number} years.",
        "What does the text say first: where was Professor {surname} born?",
        "Professor {surname} was born in {city}.",
    ],
    [
        "Chapter {number}. The {color} {building} of {city}.",
        "What is the title of the chapter with which the text begins?",
        "The {color} {building} of {city}.",
    ],
    [
        "To whom it may concern: the owner of the {building} in {city} is Doctor {surname}.",
        "According to the first sentence, who owns the {building} in {city}?",
        "Doctor {surname} owns the {building} in {city}.",
    ],
    [
        "On {month} {day} a ship with {number} crates of {fruit} left {city}. That is how it all started.",
        "What did the ship at the start of the text carry?",
        "The ship carried {number} crates of {fruit}.",
    ],
];

/// Words that the prose does not use.
pub(crate) const SLOTS: &[(&str, &[&str])] = &[
    (
        "city",
        &[
            "Lisbon",
            "Toronto",
            "Osaka",
            "Nairobi",
            "Valparaiso",
            "Reykjavik",
            "Marseille",
            "Hanoi",
            "Krakow",
            "Auckland",
            "Bogota",
            "Helsinki",
            "Tangier",
            "Seattle",
            "Izmir",
            "Porto",
            "Leipzig",
            "Adelaide",
            "Cusco",
            "Bergen",
            "Tbilisi",
            "Montreal",
            "Palermo",
            "Ghent",
        ],
    ),
    (
        "fruit",
        &[
            "papayas",
            "apricots",
            "blackberries",
            "tangerines",
            "figs",
            "melons",
            "lychees",
            "cherries",
            "grapes",
            "mangoes",
            "pomegranates",
            "kiwis",
        ],
    ),
    (
        "spice",
        &[
            "cardamom",
            "saffron",
            "turmeric",
            "star anise",
            "smoked paprika",
            "nutmeg",
            "fennel",
            "sumac",
            "vanilla",
            "ginger",
            "black pepper",
            "juniper",
        ],
    ),
    (
        "building",
        &[
            "observatory",
            "opera house",
            "aquarium",
            "windmill",
            "cinema",
            "power plant",
            "greenhouse",
            "airport",
            "museum",
            "bakery school",
            "fire station",
            "planetarium",
            "stadium",
            "brewery",
        ],
    ),
    (
        "color",
        &[
            "turquoise",
            "crimson",
            "violet",
            "lime green",
            "orange",
            "navy blue",
            "pink",
            "beige",
            "scarlet",
            "indigo",
            "olive",
            "white",
        ],
    ),
    (
        "month",
        &[
            "January",
            "March",
            "April",
            "May",
            "August",
            "September",
            "October",
            "November",
        ],
    ),
    (
        "surname",
        &[
            "Vandermeer",
            "Okonkwo",
            "Lindqvist",
            "Castellano",
            "Byrne",
            "Takahashi",
            "Novak",
            "Haddad",
            "Fitzgerald",
            "Moreau",
            "Ivanova",
            "Singh",
            "Abernathy",
            "Kowalczyk",
            "Duarte",
            "Eriksen",
        ],
    ),
];

/// A fact that stands alone in the prose.
pub(crate) fn needle(cast: &[Person], rng: &mut ChaCha8Rng) -> Question {
    question(NEEDLES, cast, rng)
}

/// A number that stands in the prose.
pub(crate) fn code(cast: &[Person], rng: &mut ChaCha8Rng) -> Question {
    question(CODES, cast, rng)
}

/// A fact with which the text begins.
pub(crate) fn start(cast: &[Person], rng: &mut ChaCha8Rng) -> Question {
    question(STARTS, cast, rng)
}

fn question(templates: &[[&str; 3]], cast: &[Person], rng: &mut ChaCha8Rng) -> Question {
    let intro = pick(INTROS, rng).to_owned();
    let [mut fact, mut question, mut answer] =
        templates[rng.random_range(0..templates.len())].map(str::to_owned);
    let mut fill = |slot: &str, word: &str| {
        let slot = format!("{{{slot}}}");
        for text in [&mut fact, &mut question, &mut answer] {
            *text = text.replace(&slot, word);
        }
    };
    for (slot, words) in SLOTS {
        fill(slot, pick(words, rng));
    }
    let who = cast[rng.random_range(0..cast.len())].name;
    fill("who", who);
    fill("number", &rng.random_range(13..980_u32).to_string());
    fill("day", &rng.random_range(2..29_u32).to_string());
    let digits = rng.random_range(4..8_u32);
    let least = 10_u32.pow(digits);
    fill("code", &rng.random_range(least..least * 10).to_string());
    Question {
        intro,
        fact,
        question,
        answer,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::prose::Prose;
    use super::super::seeded;
    use super::super::stories::STORIES;
    use super::*;

    #[test]
    fn questions_are_whole_and_do_not_answer_themselves() {
        let mut facts = BTreeSet::new();
        for seed in 0..300 {
            let mut rng = seeded("test", "questions", 0, seed, 0);
            let mut prose = Prose::new(STORIES, rng.clone());
            let text = prose.text(100, 0, None);
            let make = [needle, code, start][usize::try_from(seed % 3).unwrap()];
            let made = make(prose.cast(), &mut rng);
            for part in [&made.intro, &made.fact, &made.question, &made.answer] {
                assert!(!part.contains(['{', '}']), "{part}");
            }
            let words = |text: &str| -> BTreeSet<String> {
                text.split(|char: char| !char.is_alphanumeric())
                    .map(str::to_lowercase)
                    .collect()
            };
            let told: Vec<String> = words(&made.answer)
                .difference(&words(&made.question))
                .filter(|word| words(&made.fact).contains(*word))
                .cloned()
                .collect();
            assert!(
                !told.is_empty(),
                "the answer says what only the fact says: {made:?}"
            );
            assert!(!text.contains(&made.fact));
            facts.insert(made.fact);
        }
        assert!(facts.len() > 290, "{} facts", facts.len());
    }
}
