//! Which variant of the kernels an engine runs: given, or found by trying those that its device has on the model itself.
//!
//! A feature that is there need not be a gain, nor right: some drivers' packed products are slower than plain ones, and some
//! have exchanged values among the wrong threads. So each variant is timed on the loaded model, and one whose logits are
//! not those of the base variant is passed over. The caller keeps the answer: it is good for as long as adapter, engine and
//! model are the same.

use moa_shaders::{Compiler, Dialect, Products, Variant};

use crate::buffers::{Allocator, MAX_DECODE_BATCH, close_scopes, open_scopes};
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::pipelines::{Made, Pipelines};
use crate::portion::clock;
use crate::program::Program;
use crate::setup::Setup;

/// Tokens of the prompt that is timed.
const PROMPT: u32 = 128;
/// Seconds over which something is timed at least: a browser's clock may have steps of a millisecond.
const LEAST_SECS: f64 = 0.06;
/// Times that something is timed at most.
const MOST_REPETITIONS: u32 = 16;
/// Times that variants take turns.
const ROUNDS: usize = 2;
/// The part of the time that a variant must save, and one that rounds what the base does not.
const LEAST_GAIN: f64 = 0.02;
const LEAST_GAIN_ROUNDED: f64 = 0.1;
/// Of the norm of the logits: inputs rounded to bytes are below even in a model of nothing but outliers, anything wrong far
/// above.
const MOST_DIFFERENCE: f64 = 0.25;

/// Pipelines of a variant for a model.
pub(crate) fn pipelines<'a>(
    gpu: &'a Gpu,
    setup: &Setup,
    variant: Variant,
    made: &'a mut Made,
) -> Pipelines<'a> {
    let dialect = Dialect {
        variant,
        subgroup: gpu.subgroup(),
        compiler: Compiler::HERE,
    };
    Pipelines::new(gpu, setup.heads(), dialect, made)
}

/// Refuses a variant that the device was not opened for.
pub(crate) fn check_variant(gpu: &Gpu, variant: Variant) -> Result<()> {
    if gpu.extras().allow(variant) {
        return Ok(());
    }
    Err(EngineError::BadArgument {
        what: "variant of the kernels",
        got: variant.to_string(),
        expected: "one whose features the device has",
    })
}

/// What a trial measures.
#[derive(Clone, Copy, PartialEq)]
enum Trial {
    Prefill,
    Decode,
}

impl Engine {
    /// The variant of the kernels in use.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Goes on with another variant; what is in the cache stays.
    pub async fn set_variant(&mut self, variant: Variant) -> Result<()> {
        self.landed()?;
        check_variant(&self.gpu, variant)?;
        if variant == self.variant {
            return Ok(());
        }
        let scopes = open_scopes(&self.gpu);
        // The same buffers of constants as before, which go with the old dispatches.
        let mut allocator = Allocator::new(&self.gpu);
        let program = Program::new(
            &mut pipelines(&self.gpu, &self.setup, variant, &mut self.made),
            &mut allocator,
            &self.setup,
            &self.weights,
            &self.buffers,
            self.kernels,
        );
        if let Err(error) = close_scopes(scopes, "the kernels", 0).await {
            // Nobody shall find a pipeline that was refused.
            self.made = Made::default();
            return Err(error);
        }
        self.program = program?;
        self.variant = variant;
        self.gpu.check()
    }

    /// Tries the variants that the device has, goes on with the quickest, and says which it is. Empties the cache. Of no
    /// use on a software adapter.
    pub async fn tune(&mut self) -> Result<Variant> {
        self.ready()?;
        let extras = self.gpu.extras();
        self.set_variant(Variant::BASE).await?;
        if self.setup.context() < 4 {
            return Ok(Variant::BASE);
        }
        let mut best = Variant::BASE;
        for trial in [Trial::Prefill, Trial::Decode] {
            let mut candidates = vec![best];
            candidates.extend(match trial {
                Trial::Prefill => vec![
                    Variant {
                        products: Products::F16,
                        ..best
                    },
                    Variant {
                        products: Products::Dp4a,
                        ..best
                    },
                ],
                Trial::Decode => [(true, false), (false, true), (true, true)]
                    .map(|(subgroups, packed)| Variant {
                        subgroups,
                        packed,
                        ..best
                    })
                    .into(),
            });
            candidates.retain(|variant| extras.allow(*variant));
            best = self.quickest(trial, &candidates).await?;
        }
        self.set_variant(best).await?;
        self.reset();
        Ok(best)
    }

    /// The quickest of the candidates; the first one unless another gains something and says the same.
    async fn quickest(&mut self, trial: Trial, candidates: &[Variant]) -> Result<Variant> {
        let Some((&first, others)) = candidates.split_first() else {
            return Ok(Variant::BASE);
        };
        if others.is_empty() {
            return Ok(first);
        }
        self.set_variant(first).await?;
        let expected = self.trial_logits(trial).await?;
        let mut times = vec![(first, f64::INFINITY)];
        for &other in others {
            // What does not compile is no candidate.
            if self.set_variant(other).await.is_err() {
                self.gpu.check()?;
                continue;
            }
            let logits = self.trial_logits(trial).await?;
            if difference(&logits, &expected) < MOST_DIFFERENCE {
                times.push((other, f64::INFINITY));
            }
        }
        for _ in 0..ROUNDS {
            for (variant, secs) in &mut times {
                self.set_variant(*variant).await?;
                *secs = secs.min(self.time_trial(trial).await?);
            }
        }
        // What a variant must gain makes it dearer.
        let cost = |&(variant, secs): &(Variant, f64)| {
            let rounds = variant.products != first.products || variant.packed != first.packed;
            let gain = match (variant == first, rounds) {
                (true, _) => 0.0,
                (false, false) => LEAST_GAIN,
                (false, true) => LEAST_GAIN_ROUNDED,
            };
            secs / (1.0 - gain)
        };
        let quickest = times.iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
        Ok(quickest.map_or(first, |(variant, _)| *variant))
    }

    fn trial_prompt(&self) -> Vec<u32> {
        let most = self.prefill_chunk().min(self.setup.context() - 2);
        let vocab = self.setup.config().vocab_size;
        (0..PROMPT.min(most))
            .map(|n| n.wrapping_mul(7919) % vocab)
            .collect()
    }

    async fn trial_logits(&mut self, trial: Trial) -> Result<Vec<f32>> {
        let prompt = self.trial_prompt();
        self.reset();
        self.prefill(&prompt).await?;
        if trial == Trial::Decode {
            self.choose(prompt[prompt.len() / 2])?;
        }
        self.logits().await
    }

    /// Seconds of one prompt, or of one batch of tokens.
    async fn time_trial(&mut self, trial: Trial) -> Result<f64> {
        let prompt = self.trial_prompt();
        let tokens = MAX_DECODE_BATCH.min(self.setup.context() - 1);
        let (mut secs, mut times) = (0.0, 0u32);
        while secs < LEAST_SECS && times < MOST_REPETITIONS {
            self.reset();
            if trial == Trial::Decode {
                self.prefill(&prompt[..1]).await?;
            }
            let started = clock();
            match trial {
                Trial::Prefill => {
                    self.prefill(&prompt).await?;
                }
                Trial::Decode => {
                    self.decode(tokens).await?;
                }
            }
            secs += clock() - started;
            times += 1;
        }
        Ok(secs / f64::from(times))
    }
}

/// How far `actual` is from `expected`, as a part of its norm; NaN, which is below nothing, where anything is NaN.
fn difference(actual: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let (mut error, mut norm) = (0.0, 0.0);
    for (&actual, &expected) in actual.iter().zip(expected) {
        error += square(f64::from(actual) - f64::from(expected));
        norm += square(f64::from(expected));
    }
    (error / norm).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_logits_are_no_candidates() {
        let expected = [1.0, -2.0, 3.0];
        assert!(difference(&[1.01, -2.0, 3.0], &expected) < MOST_DIFFERENCE);
        for wrong in [[-1.0, -2.0, 3.0], [1.0, f32::NAN, 3.0]] {
            let passed = difference(&wrong, &expected) < MOST_DIFFERENCE;
            assert!(!passed, "{wrong:?}");
        }
    }
}
