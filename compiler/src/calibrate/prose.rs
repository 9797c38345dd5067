//! Prose from templates: a small cast of people with fixed trades, towns and belongings, told about in many ways.
//!
//! A language model sees through one repeated sentence at once and its attention then says nothing; here the same
//! people recur with the same facts, so that far tokens help. The stories are not good. Evaluation uses the same
//! engine with a lexicon of its own, so that a plan is never tested on its calibration's sentences.

use rand::Rng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand_chacha::ChaCha8Rng;

/// People in one text.
const CAST: usize = 7;

/// Words and sentence templates of one kind of prose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lexicon {
    /// What a cast member is, has and where: `{who}`, `{job}`, `{town}`, `{thing}`.
    pub(crate) names: &'static [&'static str],
    pub(crate) jobs: &'static [&'static str],
    pub(crate) towns: &'static [&'static str],
    pub(crate) things: &'static [&'static str],
    /// Words that any sentence may use, by the name of their slot.
    pub(crate) slots: &'static [(&'static str, &'static [&'static str])],
    /// Sentences; `{other}` is a second member of the cast, `{count}` a number of two or three digits.
    pub(crate) templates: &'static [&'static str],
}

/// Someone who recurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) name: &'static str,
    pub(crate) job: &'static str,
    pub(crate) town: &'static str,
    pub(crate) thing: &'static str,
}

/// An endless text, written as far as it was asked for.
#[derive(Debug)]
pub(crate) struct Prose {
    lexicon: Lexicon,
    rng: ChaCha8Rng,
    cast: Vec<Person>,
    /// Each with the space or paragraph break before it.
    sentences: Vec<(&'static str, String)>,
    left_in_paragraph: usize,
}

impl Prose {
    pub(crate) fn new(lexicon: Lexicon, mut rng: ChaCha8Rng) -> Self {
        let mut draw = |from: &[&'static str]| {
            let mut drawn = from.to_vec();
            drawn.shuffle(&mut rng);
            drawn
        };
        let (names, jobs) = (draw(lexicon.names), draw(lexicon.jobs));
        let (towns, things) = (draw(lexicon.towns), draw(lexicon.things));
        let cast = names
            .into_iter()
            .zip(jobs)
            .zip(towns.into_iter().zip(things))
            .take(CAST)
            .map(|((name, job), (town, thing))| Person {
                name,
                job,
                town,
                thing,
            })
            .collect();
        Self {
            lexicon,
            rng,
            cast,
            sentences: Vec::new(),
            left_in_paragraph: 0,
        }
    }

    /// The people of this text.
    pub(crate) fn cast(&self) -> &[Person] {
        &self.cast
    }

    /// The first `count` sentences and `words` words of the next one, with `insert` as a paragraph of its own after
    /// the given number of sentences.
    pub(crate) fn text(
        &mut self,
        count: usize,
        words: usize,
        insert: Option<(usize, &str)>,
    ) -> String {
        self.write(count + 1);
        let mut text = String::new();
        for (at, (separator, sentence)) in self.sentences[..count].iter().enumerate() {
            let mut separator = *separator;
            if let Some((_, paragraph)) = insert.filter(|(after, _)| *after == at) {
                push(&mut text, "\n\n", paragraph);
                separator = "\n\n";
            }
            push(&mut text, separator, sentence);
        }
        if words > 0 {
            let (separator, sentence) = &self.sentences[count];
            push(&mut text, separator, &beginning(sentence, words));
        }
        if let Some((_, paragraph)) = insert.filter(|(after, _)| *after >= count) {
            push(&mut text, "\n\n", paragraph);
        }
        text
    }

    /// The first `words` words of the text, as a sentence.
    pub(crate) fn opening(&mut self, words: usize) -> String {
        // No sentence has fewer than five words.
        let text = self.text(words / 5 + 1, 0, None).replace("\n\n", " ");
        beginning(&text, words)
    }

    /// Words of the sentence after the first `count`.
    pub(crate) fn words_after(&mut self, count: usize) -> usize {
        self.write(count + 1);
        self.sentences[count].1.split(' ').count()
    }

    fn write(&mut self, count: usize) {
        while self.sentences.len() < count {
            let separator = if self.left_in_paragraph == 0 {
                self.left_in_paragraph = self.rng.random_range(3..8);
                "\n\n"
            } else {
                " "
            };
            self.left_in_paragraph -= 1;
            let sentence = self.sentence();
            self.sentences.push((separator, sentence));
        }
    }

    fn sentence(&mut self) -> String {
        let template = pick(self.lexicon.templates, &mut self.rng);
        let at = self.rng.random_range(0..self.cast.len());
        let apart = self.rng.random_range(1..self.cast.len());
        let (who, other) = (self.cast[at], self.cast[(at + apart) % self.cast.len()]);
        let mut text = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) = after.split_once('}').unwrap_or((after, ""));
            text.push_str(before);
            let count;
            let word = match slot {
                "who" => who.name,
                "job" => who.job,
                "town" => who.town,
                "thing" => who.thing,
                "other" => other.name,
                "count" => {
                    count = self.rng.random_range(12..400).to_string();
                    &count
                }
                slot => {
                    let words = self.lexicon.slots.iter().find(|(name, _)| *name == slot);
                    words.map_or("", |(_, words)| pick(words, &mut self.rng))
                }
            };
            let article = text.ends_with(" a ") || text == "a ";
            if article && (word.starts_with(['a', 'e', 'i', 'o', 'u']) || word == "honest") {
                text.pop();
                text.push_str("n ");
            }
            text.push_str(word);
            rest = after;
        }
        text.push_str(rest);
        capitalized(&text)
    }
}

fn push(text: &mut String, separator: &str, piece: &str) {
    if !text.is_empty() {
        text.push_str(separator);
    }
    text.push_str(piece);
}

/// The first `words` words as a sentence.
fn beginning(sentence: &str, words: usize) -> String {
    let kept: Vec<&str> = sentence.split(' ').take(words).collect();
    let kept = kept.join(" ");
    format!(
        "{}.",
        kept.trim_end_matches(|char: char| !char.is_alphanumeric())
    )
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// One of `from`; empty only where `from` is.
pub(crate) fn pick(from: &[&'static str], rng: &mut impl Rng) -> &'static str {
    from.choose(rng).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::seeded;
    use super::super::stories::STORIES;
    use super::*;

    fn prose(seed: u64) -> Prose {
        Prose::new(STORIES, seeded("test", "prose", 0, seed, 0))
    }

    #[test]
    fn prose_is_varied_and_complete() {
        let mut prose = prose(1);
        let text = prose.text(600, 0, None);
        assert!(!text.contains(['{', '}']), "every slot is filled");
        assert!(
            !text.contains("  ") && !text.contains(" ."),
            "no slot is empty"
        );
        let sentences: BTreeSet<&str> = prose
            .sentences
            .iter()
            .map(|(_, text)| text.as_str())
            .collect();
        assert!(sentences.len() > 580, "{} distinct of 600", sentences.len());
        assert!(text.matches("\n\n").count() > 60, "paragraphs");
        assert!(
            sentences
                .iter()
                .all(|sentence| !sentence.starts_with(char::is_lowercase))
        );
    }

    #[test]
    fn people_keep_their_facts() {
        let mut prose = prose(2);
        let text = prose.text(800, 0, None);
        let mut met = 0;
        for person in prose.cast() {
            for other in prose.cast() {
                let told = format!("{}, the {} from {},", person.name, other.job, other.town);
                assert!(person == other || !text.contains(&told), "{told}");
                met += usize::from(person == other && text.contains(&told));
            }
        }
        assert!(met >= 4, "{met} of the cast were introduced");
        let names: BTreeSet<&str> = prose.cast().iter().map(|person| person.name).collect();
        assert_eq!(names.len(), CAST);
    }

    #[test]
    fn more_sentences_extend_a_text_and_inserts_stand_alone() {
        let mut prose = prose(3);
        let short = prose.text(5, 0, None);
        assert!(prose.text(9, 0, None).starts_with(&short));
        let three = prose.text(5, 3, None);
        let rest = three.strip_prefix(&short).unwrap();
        assert_eq!(rest.trim().split(' ').count(), 3);
        assert!(rest.ends_with('.'));
        for at in 0..=5 {
            let text = prose.text(5, 2, Some((at, "THE FACT.")));
            let paragraph = text
                .split("\n\n")
                .filter(|paragraph| *paragraph == "THE FACT.");
            assert_eq!(paragraph.count(), 1, "at {at}: {text}");
            assert_eq!(text.starts_with("THE FACT."), at == 0);
            assert_eq!(text.ends_with("THE FACT."), at == 5);
        }
        assert_ne!(short, super::tests::prose(4).text(5, 0, None));
        assert_eq!(short, super::tests::prose(3).text(5, 0, None));
    }
}
