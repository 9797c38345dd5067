//! Windows of a plain text; the second half of each carries loss, with the first as its context.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::{CalibrationError, Result, Sample, Tokenize, seeded};

/// A text, tokenized once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What opens every text of the model; repeated at the start of each window.
    opening: Vec<u32>,
    ids: Vec<u32>,
}

impl Text {
    /// Tokenizes a UTF-8 text.
    ///
    /// # Errors
    ///
    /// Bytes that are not UTF-8, a text without tokens.
    pub fn parse(bytes: &[u8], tokenizer: &dyn Tokenize) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = std::str::from_utf8(bytes).map_err(|error| CalibrationError::NotUtf8 {
            at: error.valid_up_to(),
        })?;
        let ids = tokenizer.encode(text, false)?;
        if text.trim().is_empty() || ids.is_empty() {
            return Err(CalibrationError::Empty);
        }
        Ok(Self {
            opening: tokenizer.encode("", true)?,
            ids,
        })
    }

    /// Up to `count` windows of `length` tokens, apart from each other while the text has room for that.
    ///
    /// # Errors
    ///
    /// A text shorter than nine tenths of `length`.
    pub fn samples(&self, length: u32, count: usize, seed: u64) -> Result<Vec<Sample>> {
        let whole = self.ids.len() + self.opening.len();
        let needed = (length as usize * 9).div_ceil(10);
        let body = (length as usize).saturating_sub(self.opening.len());
        if whole < needed || body < 2 {
            return Err(CalibrationError::TooShort {
                length,
                needed,
                longest: whole,
            });
        }
        let mut rng = seeded("moa calibration", "text", length, seed, 0);
        let room = self.ids.len().saturating_sub(body);
        let apart = self.ids.len() / body;
        let mut starts: Vec<usize> = if apart >= count {
            // The windows as a whole begin anywhere, so that another seed sees other borders.
            let shift = rng.random_range(0..=self.ids.len() - apart * body);
            (0..apart).map(|window| shift + window * body).collect()
        } else {
            // More windows than fit side by side overlap evenly.
            let mut starts: Vec<usize> = (0..count)
                .map(|at| room * at / (count - 1).max(1))
                .collect();
            starts.dedup();
            starts
        };
        starts.shuffle(&mut rng);
        starts.truncate(count);
        Ok(starts
            .into_iter()
            .map(|start| {
                let end = (start + body).min(self.ids.len());
                let ids = [&self.opening, &self.ids[start..end]].concat();
                Sample {
                    response_start: (ids.len() / 2).max(1),
                    ids,
                    kind: "text".into(),
                }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenize::tests::{BOS, Words};
    use super::*;

    fn text(words: usize) -> Text {
        let text: Vec<String> = (0..words).map(|at| format!("w{at}")).collect();
        Text::parse(text.join(" ").as_bytes(), &Words::default()).unwrap()
    }

    #[test]
    fn windows_are_apart_and_their_second_half_carries_loss() {
        let text = text(1000);
        assert_eq!(text.ids.len(), 1000);
        let samples = text.samples(101, 10, 3).unwrap();
        assert_eq!(samples.len(), 10);
        let mut seen = Vec::new();
        for sample in &samples {
            assert_eq!((sample.ids.len(), sample.response_start), (101, 50));
            assert_eq!(sample.ids[0], BOS);
            assert!(!sample.needs_response());
            seen.extend_from_slice(&sample.ids[1..]);
        }
        seen.sort_unstable();
        let mut all = text.ids.clone();
        all.sort_unstable();
        assert_eq!(seen, all, "ten windows of a hundred are the whole text");
        let few = text.samples(101, 3, 3).unwrap();
        assert_eq!(few, text.samples(101, 3, 3).unwrap());
        assert_ne!(few, text.samples(101, 3, 4).unwrap());
    }

    #[test]
    fn short_texts_overlap_or_do_not_serve() {
        let text = text(150);
        let samples = text.samples(101, 4, 0).unwrap();
        assert_eq!(samples.len(), 4);
        assert!(samples.iter().all(|sample| sample.ids.len() == 101));
        let one = text.samples(160, 4, 0).unwrap();
        assert_eq!(
            one.len(),
            1,
            "151 tokens are nine tenths of 160, and there is one such window"
        );
        assert_eq!(one[0].ids.len(), 151);
        let error = text.samples(168, 4, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no calibration record serves length 168: expected at least 152 tokens, the longest has 151"
        );
        assert!(text.samples(2, 1, 0).is_err(), "nothing can carry loss");
        assert_eq!(text.samples(100, 0, 0).unwrap(), []);
    }

    #[test]
    fn text_that_is_none_is_refused() {
        let parse = |bytes: &[u8]| Text::parse(bytes, &Words::default()).unwrap_err();
        assert!(matches!(parse(b""), CalibrationError::Empty));
        assert!(matches!(parse(b" \n\t"), CalibrationError::Empty));
        assert_eq!(
            parse(b"abc\xff").to_string(),
            "calibration text is not UTF-8 from byte 3"
        );
        let unicode = Text::parse(
            "Schöne Grüße 世界 🙂 ".repeat(50).as_bytes(),
            &Words::default(),
        )
        .unwrap();
        assert_eq!(unicode.samples(100, 1, 0).unwrap()[0].ids.len(), 100);
    }
}
