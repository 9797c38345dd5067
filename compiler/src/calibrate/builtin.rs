//! The built-in calibration: texts whose answers lie far back, written from a seed.
//!
//! Retrieval lines, a needle in prose, a code in prose and a question about the start of a text are rendered through
//! the model's chat template and carry loss on their answers, which are known. Plain prose carries loss on its second
//! half and keeps the heads that language needs. No answers come from a model, and nothing is downloaded.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::fit::{Stretch, fill};
use super::lines::LineWriter;
use super::prose::Prose;
use super::questions::{self, Question};
use super::stories::STORIES;
use super::{CalibrationError, Result, Sample, Tokenize, prompt_ids, response_ids, seeded};

/// Changes whenever the texts for a given seed do.
pub(crate) const VERSION: &str = "moa built-in calibration 1";

/// What a sample asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One of many named lines.
    Lines,
    /// A sentence of its own inside prose.
    Needle,
    /// A number inside prose.
    Passkey,
    /// What the first sentences said.
    Start,
    /// Nothing: prose, whose second half carries loss.
    Prose,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Lines,
        Self::Needle,
        Self::Passkey,
        Self::Start,
        Self::Prose,
    ];

    /// The name in [`Sample::kind`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Needle => "needle",
            Self::Passkey => "passkey",
            Self::Start => "start",
            Self::Prose => "prose",
        }
    }
}

/// `count` samples of each kind, each of `length` tokens or a few fewer. The same arguments give the same samples, and
/// a sample does not depend on which other kinds are asked for.
///
/// # Errors
///
/// A length that the question alone exceeds, a template that refuses the messages.
pub fn samples(
    kinds: &[Kind],
    tokenizer: &dyn Tokenize,
    length: u32,
    count: usize,
    seed: u64,
) -> Result<Vec<Sample>> {
    let wanted: Vec<(usize, Kind)> = (0..count)
        .flat_map(|index| kinds.iter().map(move |&kind| (index, kind)))
        .collect();
    wanted
        .into_par_iter()
        .map(|(index, kind)| {
            let mut rng = seeded(VERSION, kind.name(), length, seed, index);
            // One depth in every equal part of the text, so that few samples still cover it.
            #[expect(clippy::cast_precision_loss, reason = "a handful of samples")]
            let depth = (index as f64 + rng.random::<f64>()) / count as f64;
            sample(kind, tokenizer, length, depth, rng)
        })
        .collect()
}

fn sample(
    kind: Kind,
    tokenizer: &dyn Tokenize,
    length: u32,
    depth: f64,
    mut rng: ChaCha8Rng,
) -> Result<Sample> {
    let prose = Prose::new(STORIES, rng.clone());
    // The prose has its own copy of the generator; what follows must not repeat its numbers.
    rng.set_stream(1);
    let cast = prose.cast();
    let (question, depth, lines) = match kind {
        Kind::Prose => return plain(tokenizer, prose, length),
        Kind::Lines => {
            let (lines, question) = LineWriter::new(rng);
            (question, depth, Some(lines))
        }
        Kind::Needle => (questions::needle(cast, &mut rng), depth, None),
        Kind::Passkey => (questions::code(cast, &mut rng), depth, None),
        Kind::Start => (questions::start(cast, &mut rng), 0.0, None),
    };
    let mut asked = Asked {
        tokenizer,
        kind,
        question,
        depth,
        prose,
        lines,
    };
    fill(&mut asked, length as usize, |needed| {
        CalibrationError::LengthTooSmall {
            kind: kind.name(),
            needed,
            length,
        }
    })
}

/// Prose without a question, cut to the length exactly.
fn plain(tokenizer: &dyn Tokenize, mut prose: Prose, length: u32) -> Result<Sample> {
    if length < 2 {
        return Err(CalibrationError::LengthTooSmall {
            kind: Kind::Prose.name(),
            needed: 2,
            length,
        });
    }
    let length = length as usize;
    let mut sentences = length / 12 + 4;
    loop {
        let mut ids = tokenizer.encode(&prose.text(sentences, 0, None), true)?;
        if ids.len() >= length {
            ids.truncate(length);
            return Ok(Sample {
                response_start: length / 2,
                ids,
                kind: Kind::Prose.name().into(),
            });
        }
        sentences += sentences / 2;
    }
}

/// A question to a filler that can grow.
struct Asked<'a> {
    tokenizer: &'a dyn Tokenize,
    kind: Kind,
    question: Question,
    /// Where in the filler the fact stands, 0 to 1.
    depth: f64,
    prose: Prose,
    /// Instead of prose, which then fills what is left where no further line fits.
    lines: Option<LineWriter>,
}

impl Stretch for Asked<'_> {
    fn stretched(&mut self, units: usize, words: usize) -> Result<Sample> {
        let Question {
            intro,
            fact,
            question,
            answer,
        } = &self.question;
        let at = at_depth(self.depth, units);
        let text = match &mut self.lines {
            None => self.prose.text(units, words, Some((at, fact))),
            Some(lines) if words == 0 => lines.text(units, at, fact),
            Some(lines) => {
                let lines = lines.text(units, at, fact);
                format!("{lines}\n\nRemark: {}", self.prose.opening(words))
            }
        };
        let prompt = format!("{intro}\n\n{text}\n\n{question}");
        let messages = [("user", prompt.as_str())];
        let mut ids = prompt_ids(self.tokenizer, &messages)?;
        let response_start = ids.len();
        ids.extend(response_ids(self.tokenizer, &messages, answer)?);
        Ok(Sample {
            ids,
            response_start,
            kind: self.kind.name().into(),
        })
    }

    fn max_words(&mut self, units: usize) -> usize {
        match self.lines {
            // A whole sentence would have been a unit.
            None => self.prose.words_after(units).saturating_sub(1),
            Some(_) => LineWriter::WORDS,
        }
    }
}

/// The number of units before the fact.
pub(crate) fn at_depth(depth: f64, units: usize) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a part of a count, clamped to it"
    )]
    let at = (depth.clamp(0.0, 1.0) * (units + 1) as f64) as usize;
    at.min(units)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tokenize::tests::Words;
    use super::*;

    #[test]
    fn every_kind_fills_every_length_within_a_few_tokens() {
        let words = Words::default();
        for length in [256, 1000, 1024, 4096] {
            let samples = samples(&Kind::ALL, &words, length, 4, 7).unwrap();
            assert_eq!(samples.len(), 20);
            for sample in &samples {
                let got = sample.ids.len();
                assert!(got <= length as usize, "{} {got} of {length}", sample.kind);
                assert!(
                    got + 6 > length as usize,
                    "{} {got} of {length}",
                    sample.kind
                );
                assert!(!sample.needs_response());
                let response = got - sample.response_start;
                if sample.kind == "prose" {
                    assert_eq!(sample.response_start, length as usize / 2);
                } else {
                    assert!(
                        (3..60).contains(&response),
                        "{} answers in {response}",
                        sample.kind
                    );
                }
            }
        }
    }

    #[test]
    fn answers_are_in_the_text_once_at_their_depth() {
        // Whole words as ids make the texts searchable: the answer's rarest token must stand in the prompt.
        let words = Words::default();
        for kind in [Kind::Lines, Kind::Needle, Kind::Passkey, Kind::Start] {
            let samples = samples(&[kind], &words, 2000, 8, 3).unwrap();
            let mut places = Vec::new();
            for sample in &samples {
                let (prompt, answer) = sample.ids.split_at(sample.response_start);
                let place = |id: &u32| prompt.iter().position(|other| other == id);
                let known = answer.iter().filter(|id| place(id).is_some()).count();
                assert!(
                    known * 10 >= answer.len() * 7,
                    "{kind:?}: {known} of {}",
                    answer.len()
                );
                // What the question says as well is no news.
                let (text, question) = prompt.split_at(prompt.len() - 40);
                let rarest = answer
                    .iter()
                    .filter(|id| text.contains(id) && !question.contains(id))
                    .min_by_key(|id| prompt.iter().filter(|other| other == id).count());
                places.push(rarest.and_then(place).unwrap());
            }
            match kind {
                Kind::Start => assert!(places.iter().all(|place| *place < 200), "{places:?}"),
                _ => {
                    assert!(
                        places.iter().any(|place| *place < 700),
                        "{kind:?} {places:?}"
                    );
                    assert!(
                        places.iter().any(|place| *place > 1300),
                        "{kind:?} {places:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn samples_depend_on_the_seed_and_on_nothing_else() {
        let words = Words::default();
        let all = samples(&Kind::ALL, &words, 600, 2, 1).unwrap();
        assert_eq!(all, samples(&Kind::ALL, &words, 600, 2, 1).unwrap());
        let needles = samples(&[Kind::Needle], &words, 600, 2, 1).unwrap();
        assert_eq!(needles[0], all[1], "other kinds change nothing");
        assert_eq!(needles[1], all[6]);
        let other = samples(&Kind::ALL, &words, 600, 2, 2).unwrap();
        let distinct: BTreeSet<&[u32]> = all
            .iter()
            .chain(&other)
            .map(|sample| &sample.ids[..])
            .collect();
        assert_eq!(distinct.len(), 20, "no sample twice");
    }

    #[test]
    fn models_without_a_template_are_served_too() {
        let words = Words {
            without_template: true,
        };
        for sample in samples(&Kind::ALL, &words, 512, 1, 0).unwrap() {
            assert!(sample.ids.len() <= 512 && sample.ids.len() > 500);
            assert_eq!(sample.ids[0], super::super::tokenize::tests::BOS);
        }
    }

    #[test]
    fn lengths_without_room_are_refused() {
        let words = Words::default();
        for kind in Kind::ALL {
            let error = samples(&[kind], &words, 1, 1, 0).unwrap_err();
            assert!(
                matches!(error, CalibrationError::LengthTooSmall { length: 1, needed, .. } if needed > 1),
                "{error}"
            );
        }
    }

    #[test]
    fn depths_reach_both_ends() {
        assert_eq!(
            (at_depth(0.0, 9), at_depth(0.999, 9), at_depth(1.0, 9)),
            (0, 9, 9)
        );
        assert_eq!(at_depth(0.5, 0), 0);
        assert_eq!(at_depth(f64::NAN, 5), 0);
    }
}
