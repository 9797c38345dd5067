//! What quantizing cost: perplexity of the bundle's weights against the source's, on the same text.

use rand::Rng as _;
use serde::Serialize;

use crate::bundle::Bundle;
use crate::calibrate::{Calibration, CalibrationSource, Kind, Tokenize, seeded};
use crate::device::{self, on};
use crate::interrupt;
use crate::opened::Opened;
use crate::printer::Printer;

/// Tokens of the text: enough to see a bad quantization, little enough to be cheap.
const TOKENS: u32 = 512;

/// Perplexities on one text under dense attention.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Perplexity {
    source: f64,
    stored: f64,
    ratio: f64,
    tokens: usize,
    /// `built-in text`, or `random ids` for a model without a tokenizer.
    text: &'static str,
    /// Every stored weight equals its source, so that the second figure is the first.
    lossless: bool,
}

impl Perplexity {
    /// For people.
    pub(crate) fn sentence(&self) -> String {
        if self.lossless {
            format!(
                "weights are stored without loss; perplexity {:.3} on {}",
                self.source, self.text
            )
        } else {
            format!(
                "perplexity on {}: {:.3} as stored against {:.3} of the source weights, ratio {:.4}",
                self.text, self.stored, self.source, self.ratio
            )
        }
    }
}

/// Compares a bundle with the checkpoint that it was written from.
pub(crate) fn compare(
    opened: &Opened,
    bundle: &Bundle,
    max_error: f32,
    printer: &Printer,
) -> anyhow::Result<Perplexity> {
    let (ids, text) = text(opened)?;
    let sample = moa_lm::Sample::new(ids, 1);
    let cancel = interrupt::flag();
    let source = on!(opened.lm(printer)?, lm => lm.loss(&sample, None, cancel))?.exp();
    let lossless = max_error == 0.0;
    let stored = if lossless {
        source
    } else {
        let stored = device::load_weights(&opened.place, bundle)?;
        on!(&stored, lm => lm.loss(&sample, None, cancel))?.exp()
    };
    Ok(Perplexity {
        source,
        stored,
        ratio: stored / source,
        tokens: sample.ids.len(),
        text,
        lossless,
    })
}

fn text(opened: &Opened) -> anyhow::Result<(Vec<u32>, &'static str)> {
    let config = opened.source.config();
    let length = TOKENS.min(config.max_context);
    if let Some(tokenizer) = opened.source.tokenizer() {
        let tokenizer: &dyn Tokenize = tokenizer;
        let source = CalibrationSource::Builtin(vec![Kind::Prose]);
        let calibration = Calibration::open(&source, Some(tokenizer), config.vocab_size)?;
        if let Ok(samples) = calibration.samples(Some(tokenizer), length, 1, 0)
            && let Some(sample) = samples.into_iter().next()
        {
            return Ok((sample.ids, "built-in text"));
        }
    }
    let mut rng = seeded("perplexity", "ids", length, 0, 0);
    let ids = (0..length.max(2))
        .map(|_| rng.random_range(0..config.vocab_size))
        .collect();
    Ok((ids, "random ids"))
}
