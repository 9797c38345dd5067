//! Choosing the next token: greedy, or drawn after temperature, top-k, top-p and min-p, in that order.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{LmError, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the most likely tokens, this many; 0 keeps all.
    pub top_k: u32,
    /// Keeps the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this likely relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

impl SamplerOptions {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
    };
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// Draws tokens from logits.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Checks the options.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        let bad = |what, got: f32, expected| {
            Err(LmError::BadOption {
                what,
                got: got.to_string(),
                expected,
            })
        };
        if !(options.temperature.is_finite() && options.temperature >= 0.0) {
            return bad("temperature", options.temperature, "0 or more");
        }
        if !(options.top_p > 0.0 && options.top_p <= 1.0) {
            return bad("top-p", options.top_p, "more than 0, at most 1");
        }
        if !(0.0..=1.0).contains(&options.min_p) {
            return bad("min-p", options.min_p, "0 to 1");
        }
        Ok(Self {
            options,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
        })
    }

    /// The next token. Of equal logits the smallest id wins; NaN never does.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.options.temperature == 0.0 {
            return argmax(logits);
        }
        let kept = self.candidates(logits);
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        for &(id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        kept.last().map_or_else(|| argmax(logits), |&(id, _)| id)
    }

    /// Tokens that may be drawn and their weights, the most likely first; its weight is 1.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let SamplerOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.options;
        let mut order: Vec<(u32, f32)> = (0..)
            .zip(logits.iter().copied())
            .filter(|(_, logit)| !logit.is_nan())
            .collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if top_k > 0 {
            order.truncate(top_k as usize);
        }
        let largest = f64::from(order.first().map_or(0.0, |&(_, logit)| logit));
        let mut kept: Vec<(u32, f64)> = order
            .into_iter()
            .map(|(id, logit)| {
                (
                    id,
                    ((f64::from(logit) - largest) / f64::from(temperature)).exp(),
                )
            })
            .take_while(|&(_, weight)| weight > 0.0)
            .collect();
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        if top_p < 1.0 {
            let mut sum = 0.0;
            let enough = kept.iter().position(|&(_, weight)| {
                sum += weight;
                sum >= f64::from(top_p) * total
            });
            kept.truncate(enough.map_or(kept.len(), |last| last + 1));
        }
        let likely = kept
            .iter()
            .take_while(|&&(_, weight)| weight >= f64::from(min_p))
            .count();
        kept.truncate(likely.max(1));
        kept
    }
}

/// The smallest id with the largest logit.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(SamplerOptions {
            temperature: 1.0,
            ..options
        })
        .unwrap()
    }

    fn ids(sampler: &Sampler, logits: &[f32]) -> Vec<u32> {
        sampler
            .candidates(logits)
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut greedy = Sampler::new(SamplerOptions::GREEDY).unwrap();
        assert_eq!(greedy.sample(&[1.0, 3.0, f32::NAN, 3.0]), 1);
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY; 3]), 0);
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits: Vec<f32> = [0.1f32, 0.5, 0.05, 0.35].iter().map(|p| p.ln()).collect();
        let all = SamplerOptions::default();
        assert_eq!(ids(&sampler(all), &logits), [1, 3, 0, 2]);
        assert_eq!(
            ids(&sampler(SamplerOptions { top_k: 2, ..all }), &logits),
            [1, 3]
        );
        assert_eq!(
            ids(&sampler(SamplerOptions { top_p: 0.84, ..all }), &logits),
            [1, 3]
        );
        assert_eq!(
            ids(&sampler(SamplerOptions { top_p: 0.86, ..all }), &logits),
            [1, 3, 0]
        );
        assert_eq!(
            ids(&sampler(SamplerOptions { min_p: 0.15, ..all }), &logits),
            [1, 3, 0]
        );
        assert_eq!(
            ids(&sampler(SamplerOptions { min_p: 1.0, ..all }), &logits),
            [1]
        );
    }

    #[test]
    fn draws_follow_the_weights_and_the_seed() {
        let logits: Vec<f32> = [0.2f32, 0.5, 0.3].iter().map(|p| p.ln()).collect();
        let draw = |seed| {
            let mut sampler = sampler(SamplerOptions {
                seed,
                ..Default::default()
            });
            (0..20_000)
                .map(|_| sampler.sample(&logits))
                .collect::<Vec<_>>()
        };
        let drawn = draw(7);
        assert_eq!(drawn, draw(7));
        assert_ne!(drawn, draw(8));
        for (id, expected) in [(0, 0.2), (1, 0.5), (2, 0.3)] {
            let share = drawn.iter().filter(|&&drawn| drawn == id).count() as f64 / 20_000.0;
            assert!((share - expected).abs() < 0.015, "{id}: {share}");
        }
    }

    #[test]
    fn options_without_meaning_are_refused() {
        let all = SamplerOptions::default();
        for options in [
            SamplerOptions {
                temperature: -1.0,
                ..all
            },
            SamplerOptions {
                temperature: f32::NAN,
                ..all
            },
            SamplerOptions { top_p: 0.0, ..all },
            SamplerOptions { top_p: 1.5, ..all },
            SamplerOptions { min_p: -0.1, ..all },
        ] {
            assert!(Sampler::new(options).is_err());
        }
    }
}
