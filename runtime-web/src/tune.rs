//! Which variant of the kernels an engine runs: given, or found by trying those that its device has on the model itself.
//!
//! A feature that is there need not be a gain, nor right: some drivers' packed products are slower than plain ones, and some
//! have exchanged values among the wrong threads. So each variant is timed on the loaded model, and one whose logits are
//! not those of the base variant is passed over. The caller keeps the answer: it is good for as long as adapter, engine and
//! model are the same.

use std::mem::swap;

use moa_shaders::{Compiler, Dialect, Products, Variant};

use crate::buffers::{Allocator, STAGING_BUFFERS, close_scopes, open_scopes};
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::pipelines::{Made, Pipelines};
use crate::portion::clock;
use crate::program::Program;
use crate::sampler::Sampler;
use crate::setup::Setup;

/// Tokens of the prompt that is timed.
const PROMPT: u32 = 128;
/// Tokens of a batch at most: as many as a page takes.
const BATCH: u32 = 8;
/// Batches of a turn, of which all but the first are timed.
const BATCHES: u32 = 4;
/// Seconds of a turn at most, where batches may have one token: long enough for batches of their full size wherever the way
/// to the device and back takes as long as a token.
const TURN_SECS: f64 = 0.06;
/// Times that variants take turns: until each has had so many seconds, but within these bounds.
const VARIANT_SECS: f64 = 0.2;
const LEAST_ROUNDS: usize = 4;
const MOST_ROUNDS: usize = 15;
/// The part of the time that a variant must save, and one that rounds what the first does not.
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

/// A candidate, its dispatches, and its seconds in each round.
struct Tried<P = Program> {
    variant: Variant,
    program: P,
    secs: Vec<f64>,
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
        if variant != self.variant {
            self.program = self.program_of(variant).await?;
            self.variant = variant;
        }
        self.gpu.check()
    }

    /// The dispatches of another variant.
    async fn program_of(&mut self, variant: Variant) -> Result<Program> {
        let scopes = open_scopes(&self.gpu);
        // As many bytes of constants as before, which go with the old dispatches.
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
        program
    }

    /// Tries the variants that the device has, goes on with the quickest, and says which it is. Empties the cache. Of no
    /// use on a software adapter.
    pub async fn tune(&mut self) -> Result<Variant> {
        self.ready()?;
        let extras = self.gpu.extras();
        self.set_variant(Variant::BASE).await?;
        if self.setup.context() < BATCHES {
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
            if candidates.len() > 1 {
                self.take_quickest(trial, &candidates).await?;
                best = self.variant;
            }
        }
        self.reset();
        Ok(best)
    }

    /// Goes on with the quickest of the candidates that say what the first says.
    async fn take_quickest(&mut self, trial: Trial, candidates: &[Variant]) -> Result<()> {
        let mut tried = Vec::new();
        for &variant in candidates {
            match self.program_of(variant).await {
                Ok(program) => tried.push(Tried {
                    variant,
                    program,
                    secs: Vec::new(),
                }),
                // What does not compile is no candidate.
                Err(_) => self.gpu.check()?,
            }
        }
        // When everything is compiled, so that this warms the device up as well.
        let mut expected = Vec::new();
        let mut same = Vec::new();
        for mut candidate in tried {
            self.exchange(&mut candidate);
            let logits = self.trial_logits(trial).await;
            self.exchange(&mut candidate);
            let logits = logits?;
            if expected.is_empty() {
                expected.clone_from(&logits);
            }
            if difference(&logits, &expected) < MOST_DIFFERENCE {
                same.push(candidate);
            }
        }
        let batch = match trial {
            Trial::Prefill => None,
            Trial::Decode => Some(self.trial_batch().await?),
        };
        let most = VARIANT_SECS * same.len() as f64;
        let started = clock();
        for round in 0..MOST_ROUNDS {
            if round >= LEAST_ROUNDS && clock() - started >= most {
                break;
            }
            for candidate in &mut same {
                self.exchange(candidate);
                let secs = self.time_turn(batch).await;
                self.exchange(candidate);
                candidate.secs.push(secs?);
            }
        }
        let index = quickest(&same);
        if let Some(quickest) = same.get_mut(index) {
            self.exchange(quickest);
        }
        Ok(())
    }

    /// Runs as another variant whose dispatches are made, until the same is exchanged again.
    fn exchange(&mut self, other: &mut Tried) {
        swap(&mut self.variant, &mut other.variant);
        swap(&mut self.program, &mut other.program);
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

    /// Seconds of a decoded token in batches of this size, or else of the prompt. As many batches are in flight as there can
    /// be: neither writing the commands nor the way to the device and back counts, unless they take longer than the device.
    async fn time_turn(&mut self, batch: Option<u32>) -> Result<f64> {
        let prompt = self.trial_prompt();
        self.reset();
        let mut started = clock();
        let taken = if batch.is_some() { 1 } else { prompt.len() };
        self.prefill(&prompt[..taken]).await?;
        let Some(batch) = batch else {
            return Ok(clock() - started);
        };
        let greedy = Sampler::greedy();
        let mut begun = 0;
        for landed in 0..BATCHES {
            while begun < BATCHES && self.in_flight() < STAGING_BUFFERS {
                self.begin(batch, &greedy)?;
                begun += 1;
            }
            self.collect().await?;
            if landed == 0 {
                started = clock();
            }
        }
        Ok((clock() - started) / f64::from((BATCHES - 1) * batch))
    }

    /// Tokens of a batch: as many as a turn and the context have room for.
    async fn trial_batch(&mut self) -> Result<u32> {
        let mut batch = BATCH.min(self.setup.context() / BATCHES);
        let token = self.time_turn(Some(1)).await?;
        while batch > 1 && f64::from(BATCHES * batch) * token > TURN_SECS {
            batch /= 2;
        }
        Ok(batch)
    }
}

/// Which of the variants to take, from the seconds of each in every round. They come in the order of what they round; one
/// takes the place of the best before it only where it saves enough in most rounds, and something in three of four: more
/// than they differ by. Each is compared with its neighbor in time, so that what the device does to all of them speaks for
/// nobody.
fn quickest<P>(tried: &[Tried<P>]) -> usize {
    let rounds = |variant: Variant| variant.packed || variant.products != tried[0].variant.products;
    let mut best = 0;
    for (index, candidate) in tried.iter().enumerate().skip(1) {
        let gain = if rounds(candidate.variant) && !rounds(tried[best].variant) {
            LEAST_GAIN_ROUNDED
        } else {
            LEAST_GAIN
        };
        let (mut enough, mut quicker) = (0, 0);
        for (secs, best) in candidate.secs.iter().zip(&tried[best].secs) {
            enough += usize::from(*secs < best * (1.0 - gain));
            quicker += usize::from(secs < best);
        }
        let turns = candidate.secs.len();
        if 2 * enough > turns && 4 * quicker >= 3 * turns {
            best = index;
        }
    }
    best
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

    const NAMES: [&str; 4] = [
        "dp4a",
        "subgroups+dp4a",
        "dp4a+packed",
        "subgroups+dp4a+packed",
    ];

    /// What is taken of the first few of those variants, when each takes as long as `secs` says, and in each round another
    /// part of it more or less.
    fn taken(secs: &[f64], rounds: usize, mut noise: impl FnMut(usize, usize) -> f64) -> usize {
        let tried: Vec<Tried<()>> = secs
            .iter()
            .enumerate()
            .map(|(index, secs)| Tried {
                variant: NAMES[index].parse().expect("a variant"),
                program: (),
                secs: (0..rounds)
                    .map(|round| secs * (1.0 + noise(round, index)))
                    .collect(),
            })
            .collect();
        quickest(&tried)
    }

    #[test]
    fn a_variant_must_save_enough() {
        let exactly = |secs: &[f64]| taken(secs, MOST_ROUNDS, |_, _| 0.0);
        assert_eq!(exactly(&[1.0, 0.97]), 1);
        assert_eq!(exactly(&[1.0, 0.99]), 0);
        assert_eq!(exactly(&[1.0, 1.0, 0.89]), 2);
        assert_eq!(exactly(&[1.0, 1.0, 0.91]), 0, "it rounds");
        assert_eq!(
            exactly(&[1.0, 0.95, 0.88]),
            1,
            "measured from the best that does not round"
        );
        assert_eq!(exactly(&[1.0, 0.95, 0.8, 0.79]), 2, "no better");
        assert_eq!(exactly(&[1.0, 0.95, 0.8, 0.75]), 3, "both round");
        assert_eq!(exactly(&[1.0, 0.99, 0.93, 0.87]), 3, "only both together");
        assert_eq!(
            exactly(&[0.0, 0.0, 0.0, 0.0]),
            0,
            "a clock that stands still"
        );
        assert_eq!(exactly(&[1.0]), 0);
    }

    #[test]
    fn noise_chooses_nothing() {
        for seed in 0..500u32 {
            let mut state = seed;
            // Up to 2% more or less.
            let mut random = |_, _| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(state >> 8) / f64::from(1 << 24) * 0.04 - 0.02
            };
            let mut taken = |secs: &[f64], rounds| taken(secs, rounds, &mut random);
            assert_eq!(
                taken(&[1.0, 1.0, 0.92, 0.92], MOST_ROUNDS),
                0,
                "seed {seed}"
            );
            assert_eq!(
                taken(&[1.0, 1.02, 0.93, 0.94], LEAST_ROUNDS),
                0,
                "seed {seed}"
            );
            assert_eq!(taken(&[1.0, 1.0, 0.86], MOST_ROUNDS), 2, "seed {seed}");
        }
    }

    #[test]
    fn what_happens_to_the_device_speaks_for_nobody() {
        // Its clock rises from round to round, then falls to half.
        let clock = |round: usize, _| [0.3, 0.1, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0][round];
        assert_eq!(taken(&[1.0, 1.0, 0.88], 8, clock), 2);
        assert_eq!(taken(&[1.0, 1.0, 0.92], 8, clock), 0);
        // It was busy otherwise while one of them ran.
        let busy = |rounds: &'static [usize], victim: usize| {
            move |round: usize, index: usize| {
                if index == victim && rounds.contains(&round) {
                    2.0
                } else {
                    0.0
                }
            }
        };
        assert_eq!(taken(&[1.0, 1.0, 0.88], 8, busy(&[0, 6], 2)), 2);
        assert_eq!(taken(&[1.0, 1.0, 0.98], 8, busy(&[0, 1, 2, 3], 0)), 0);
        // What differs more from round to round than by what is saved on the whole.
        let swings = |round: usize, index: usize| {
            [0.1, -0.1, -0.1][round % 3] * f64::from(u8::from(index == 1))
        };
        assert_eq!(taken(&[1.0, 1.0], 15, swings), 0);
    }

    /// An H200 has such states, 12% apart, for some turns each.
    #[test]
    fn a_device_of_two_moods_is_asked_often_enough() {
        let mood = |round: usize, index: usize| match (7 * round + 3 * index) % 5 {
            0 => 0.12,
            1 => 0.06,
            _ => 0.0,
        };
        assert_eq!(taken(&[1.0, 0.985, 0.855, 0.845], MOST_ROUNDS, mood), 2);
        assert_eq!(taken(&[1.0, 0.985, 0.93, 0.92], MOST_ROUNDS, mood), 0);
    }

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
