//! How a token is chosen: greedily, or by chance after penalties, temperature, top-k, top-p and min-p, in that order.
//!
//! Only the wishes are here, checked and put into the kernel's terms; the choice is made on the device (`sample.wgsl`).
//! A draw belongs to a seed and a position of the text, so that nothing but these decides it.

use moa_mask::abi::{SampleParams, WEIGHT_ONE};

use crate::error::{EngineError, Result};

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SamplingOptions {
    /// Divides the logits; 0 chooses the largest.
    pub temperature: f64,
    /// Keeps the k largest; 0 keeps all.
    pub top_k: u32,
    /// Keeps the largest until their probabilities reach p; 1 keeps all.
    pub top_p: f64,
    /// Drops what is less likely than this part of the likeliest; 0 keeps all.
    pub min_p: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Divides the positive logits of tokens that are in the text, and multiplies the negative ones; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Taken off the logits of tokens that were generated since the last prefill; 0 changes nothing.
    pub presence_penalty: f64,
    /// The same for each time that they were generated.
    pub frequency_penalty: f64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }
}

/// Checked options.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    options: SamplingOptions,
}

impl Sampler {
    /// Checks the options.
    pub fn new(options: SamplingOptions) -> Result<Self> {
        let bad = |what, got: f64, expected| {
            Err(EngineError::BadArgument {
                what,
                got: got.to_string(),
                expected,
            })
        };
        let SamplingOptions {
            temperature,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ..
        } = options;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return bad("temperature", temperature, "0 or more");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return bad("top-p", top_p, "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return bad("min-p", min_p, "0 to 1");
        }
        if !(repetition_penalty > 0.0 && repetition_penalty <= 100.0) {
            return bad(
                "repetition penalty",
                repetition_penalty,
                "above 0, at most 100",
            );
        }
        for (what, penalty) in [
            ("presence penalty", presence_penalty),
            ("frequency penalty", frequency_penalty),
        ] {
            if !(-100.0..=100.0).contains(&penalty) {
                return bad(what, penalty, "-100 to 100");
            }
        }
        Ok(Self { options })
    }

    /// The sampler that always takes the largest logit.
    pub fn greedy() -> Self {
        Self {
            options: SamplingOptions::default(),
        }
    }

    /// Whether the largest logit is always taken, as it is.
    pub fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0 && !self.penalizes()
    }

    /// Whether what is in the text counts.
    pub fn penalizes(&self) -> bool {
        let SamplingOptions {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ..
        } = self.options;
        (repetition_penalty, presence_penalty, frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// The options in the kernel's terms, for logits of `dim` tokens.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "kernels compute in f32 and u32"
    )]
    #[expect(clippy::cast_sign_loss, reason = "checked: not negative")]
    pub(crate) fn params(&self, dim: u32) -> SampleParams {
        let options = &self.options;
        let top_p = if options.top_p < 1.0 {
            // Casts saturate; the largest u32 means that all are kept.
            ((options.top_p * 2f64.powi(32)) as u32).min(u32::MAX - 1)
        } else {
            u32::MAX
        };
        SampleParams {
            dim,
            top_k: options.top_k,
            top_p,
            min_weight: (options.min_p * f64::from(WEIGHT_ONE)).ceil() as u32,
            // Small temperatures are finite inverses too.
            inverse_temperature: if options.temperature == 0.0 {
                0.0
            } else {
                options.temperature.recip().min(1e30) as f32
            },
            seed_low: options.seed as u32,
            seed_high: (options.seed >> 32) as u32,
            penalize: self.penalizes().into(),
            repetition: options.repetition_penalty as f32,
            presence: options.presence_penalty as f32,
            frequency: options.frequency_penalty as f32,
            reserved: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        let plain = SamplingOptions::default();
        for options in [
            SamplingOptions {
                temperature: -1.0,
                ..plain
            },
            SamplingOptions {
                temperature: f64::NAN,
                ..plain
            },
            SamplingOptions {
                top_p: 0.0,
                ..plain
            },
            SamplingOptions {
                top_p: 1.5,
                ..plain
            },
            SamplingOptions {
                min_p: 2.0,
                ..plain
            },
            SamplingOptions {
                repetition_penalty: 0.0,
                ..plain
            },
            SamplingOptions {
                presence_penalty: f64::NAN,
                ..plain
            },
            SamplingOptions {
                frequency_penalty: 1e9,
                ..plain
            },
        ] {
            assert!(Sampler::new(options).is_err(), "{options:?}");
        }
        assert!(Sampler::new(plain).unwrap().is_greedy());
    }

    #[test]
    fn options_become_whole_numbers() {
        let params = |options| Sampler::new(options).unwrap().params(10);
        let plain = SamplingOptions {
            temperature: 0.5,
            ..SamplingOptions::default()
        };
        let all = params(plain);
        assert_eq!((all.top_p, all.min_weight, all.penalize), (u32::MAX, 0, 0));
        assert_eq!(all.inverse_temperature, 2.0);
        let some = params(SamplingOptions {
            top_p: 0.25,
            min_p: 1.0,
            seed: 0x1_0000_0002,
            presence_penalty: 1.0,
            ..plain
        });
        assert_eq!((some.top_p, some.min_weight), (1 << 30, WEIGHT_ONE));
        assert_eq!((some.seed_low, some.seed_high, some.penalize), (2, 1, 1));
        let almost = params(SamplingOptions {
            top_p: 1.0 - 1e-12,
            temperature: 1e-300,
            ..plain
        });
        assert_eq!(almost.top_p, u32::MAX - 1);
        assert!(almost.inverse_temperature.is_finite());
    }
}
