//! Fills a prompt to a length in tokens: as many units of filler as fit, then single words.

use super::{CalibrationError, Result, Sample};

/// A prompt that can be longer or shorter.
pub(crate) trait Stretch {
    /// The sample with `units` units of filler and `words` further words.
    fn stretched(&mut self, units: usize, words: usize) -> Result<Sample>;
    /// How many further words may follow `units` units.
    fn max_words(&mut self, units: usize) -> usize;
}

/// The longest sample of at most `limit` tokens.
///
/// # Errors
///
/// The prompt is longer even without filler; `too_small` makes the error of its length.
pub(crate) fn fill(
    prompt: &mut dyn Stretch,
    limit: usize,
    too_small: impl FnOnce(usize) -> CalibrationError,
) -> Result<Sample> {
    let mut best = prompt.stretched(0, 0)?;
    if best.ids.len() > limit {
        return Err(too_small(best.ids.len()));
    }
    // A first guess from eight units; then steps that double until the limit lies between two counts.
    let bare = best.ids.len();
    let eight = prompt
        .stretched(8, 0)?
        .ids
        .len()
        .saturating_sub(bare)
        .max(8);
    let guess = (limit - bare) * 8 / eight;
    let mut fits = 0;
    let mut exceeds = None;
    let mut attempt = guess.max(1);
    let mut step = (guess / 64).max(1);
    loop {
        let sample = prompt.stretched(attempt, 0)?;
        if sample.ids.len() <= limit {
            fits = attempt;
            best = sample;
        } else {
            exceeds = Some(attempt);
        }
        attempt = match exceeds {
            None => fits + step,
            Some(exceeds) if exceeds - fits <= 1 => break,
            // Below the first guess nothing is known but zero; step down until something fits.
            Some(exceeds) if fits == 0 && step < exceeds => exceeds - step,
            Some(exceeds) => fits + (exceeds - fits) / 2,
        };
        step = step.saturating_mul(2);
    }
    let (mut low, mut high) = (0, prompt.max_words(fits) + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let sample = prompt.stretched(fits, middle)?;
        if sample.ids.len() <= limit {
            low = middle;
            best = sample;
        } else {
            high = middle;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counted {
        bare: usize,
        unit: usize,
        calls: usize,
    }

    impl Stretch for Counted {
        fn stretched(&mut self, units: usize, words: usize) -> Result<Sample> {
            self.calls += 1;
            Ok(Sample {
                ids: vec![0; self.bare + units * self.unit + words * 2],
                response_start: 1,
                kind: String::new(),
            })
        }

        fn max_words(&mut self, _: usize) -> usize {
            self.unit / 2
        }
    }

    #[test]
    fn prompts_are_filled_to_the_last_word() {
        for limit in [40, 41, 60, 1000, 4097, 131_072] {
            for unit in [1, 7, 24] {
                let mut prompt = Counted {
                    bare: 39,
                    unit,
                    calls: 0,
                };
                let ids = fill(&mut prompt, limit, |_| CalibrationError::Empty)
                    .unwrap()
                    .ids;
                assert!(
                    ids.len() <= limit && ids.len() + 1 >= limit,
                    "{} of {limit}",
                    ids.len()
                );
                assert!(prompt.calls < 20, "{} calls", prompt.calls);
            }
        }
        let mut prompt = Counted {
            bare: 39,
            unit: 5,
            calls: 0,
        };
        let error = fill(&mut prompt, 38, |needed| CalibrationError::LengthTooSmall {
            kind: "x",
            needed,
            length: 38,
        });
        assert!(matches!(
            error,
            Err(CalibrationError::LengthTooSmall { needed: 39, .. })
        ));
    }
}
