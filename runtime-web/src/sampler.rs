//! The choice of a token from logits: greedy, or drawn after temperature, top-k, top-p and min-p, in that order.
//!
//! The generator is counter-based: the n-th draw of a seed is always the same number, whatever happened between.
//! Greedy samplers are only a mark here; the engine leaves that choice to the device.

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
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

/// A choice with its generator's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    options: SamplingOptions,
    draws: u64,
}

impl Sampler {
    /// Checks the options.
    pub fn new(options: SamplingOptions) -> Result<Self> {
        let bad = |what, got: String, expected| {
            Err(EngineError::BadArgument {
                what,
                got,
                expected,
            })
        };
        let SamplingOptions {
            temperature,
            top_p,
            min_p,
            ..
        } = options;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return bad("temperature", temperature.to_string(), "0 or more");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return bad("top-p", top_p.to_string(), "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return bad("min-p", min_p.to_string(), "0 to 1");
        }
        Ok(Self { options, draws: 0 })
    }

    /// The sampler that always takes the largest logit.
    pub fn greedy() -> Self {
        Self {
            options: SamplingOptions::default(),
            draws: 0,
        }
    }

    /// Whether the largest logit is always taken.
    pub fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0
    }

    /// The options.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Chooses an id; the smallest among equals when greedy. `None` when no logit is a number.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let mut candidates: Vec<(u32, f64)> = (0u32..)
            .zip(logits)
            .filter(|(_, logit)| logit.is_finite())
            .map(|(id, &logit)| (id, logit.into()))
            .collect();
        // Largest first, the smaller id first among equals.
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let &(best, largest) = candidates.first()?;
        if self.is_greedy() {
            return Some(best);
        }
        if self.options.top_k > 0 {
            candidates.truncate(self.options.top_k as usize);
        }
        for (_, weight) in &mut candidates {
            *weight = ((*weight - largest) / self.options.temperature).exp();
        }
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut reached = 0.0;
        let nucleus = candidates.iter().position(|(_, weight)| {
            reached += weight / total;
            reached >= self.options.top_p
        });
        if let Some(last) = nucleus {
            candidates.truncate(last + 1);
        }
        // The likeliest has weight 1.
        candidates.retain(|(_, weight)| *weight >= self.options.min_p);
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.draw() * total;
        for (id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Some(*id);
            }
        }
        candidates.last().map(|(id, _)| *id)
    }

    /// The next number in [0, 1): `SplitMix64` at the position of the counter.
    fn draw(&mut self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        self.draws += 1;
        let mut bits = self
            .options
            .seed
            .wrapping_mul(0xd134_2543_de82_ef95)
            .wrapping_add(self.draws.wrapping_mul(STEP));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        #[expect(
            clippy::cast_precision_loss,
            reason = "the 53 bits that are kept are exact"
        )]
        let unit = (bits >> 11) as f64 / (1u64 << 53) as f64;
        unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: SamplingOptions) -> Sampler {
        Sampler::new(options).unwrap()
    }

    fn counts(mut sampler: Sampler, logits: &[f32], draws: u32) -> Vec<u32> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_never_nan() {
        let mut greedy = Sampler::greedy();
        assert_eq!(greedy.sample(&[1.0, 3.0, 3.0, f32::NAN]), Some(1));
        assert_eq!(greedy.sample(&[f32::NAN]), None);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let options = SamplingOptions {
            temperature: 0.5,
            seed: 7,
            ..SamplingOptions::default()
        };
        let counts = counts(sampler(options), &logits, 20_000);
        let weights: Vec<f64> = logits
            .iter()
            .map(|logit| (f64::from(*logit) * 2.0).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let part = f64::from(*count) / 20_000.0;
            assert!(
                (part - weight / total).abs() < 0.01,
                "{part} {}",
                weight / total
            );
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = [0.0f32, 1.0, 2.0, 3.0];
        let hot = SamplingOptions {
            temperature: 5.0,
            ..SamplingOptions::default()
        };
        assert!(
            counts(sampler(hot), &logits, 500)
                .iter()
                .all(|&count| count > 0),
            "the control"
        );
        let top_k = counts(sampler(SamplingOptions { top_k: 2, ..hot }), &logits, 500);
        assert_eq!(top_k[..2], [0, 0]);
        assert!(top_k[2] > 0 && top_k[3] > 0);
        // Probabilities at temperature 1: .03, .09, .24, .64.
        let plain = SamplingOptions {
            temperature: 1.0,
            ..hot
        };
        let top_p = counts(
            sampler(SamplingOptions {
                top_p: 0.7,
                ..plain
            }),
            &logits,
            500,
        );
        assert_eq!(top_p[..2], [0, 0]);
        assert!(top_p[2] > 0);
        let min_p = counts(
            sampler(SamplingOptions {
                min_p: 0.3,
                ..plain
            }),
            &logits,
            500,
        );
        assert_eq!(min_p[..2], [0, 0]);
        assert!(min_p[2] > 0);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits = [0.0f32; 64];
        let draw = |seed| {
            let mut sampler = sampler(SamplingOptions {
                temperature: 1.0,
                seed,
                ..SamplingOptions::default()
            });
            (0..16)
                .map(|_| sampler.sample(&logits).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(0)[..8], draw(0)[8..]);
    }

    #[test]
    fn nonsense_is_refused() {
        for (temperature, top_p, min_p) in [
            (-1.0, 1.0, 0.0),
            (f64::NAN, 1.0, 0.0),
            (1.0, 0.0, 0.0),
            (1.0, 1.5, 0.0),
            (1.0, 1.0, 2.0),
        ] {
            let options = SamplingOptions {
                temperature,
                top_p,
                min_p,
                ..SamplingOptions::default()
            };
            assert!(Sampler::new(options).is_err(), "{options:?}");
        }
    }
}
