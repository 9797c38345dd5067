//! `moa-run perplexity`: what kernels that round more than others cost in quality. The first half of every window of a text
//! is prefilled, the rest put in token by token as decoding does, so that both kinds of kernels count; beside the variant
//! that was asked for runs the base. It compares kernels on one bundle: plans and models are the business of
//! `moa-compile eval`.

use std::path::PathBuf;

use clap::Args;
use moa_runtime_web::bundle::Bundle;
use moa_runtime_web::{DecodeKernels, Engine, Variant};
use serde_json::json;

use super::run::{adapter, make_engine, prefill, read_ids};
use super::{CliError, EngineArgs};

/// Arguments of `perplexity`.
#[derive(Debug, Args)]
pub(super) struct PerplexityArgs {
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    /// Folder that `moa-compile build` wrote.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// JSON file with an array of token ids: the text, of which whole windows are taken.
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// Tokens of a window; the second half of them is scored.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    window: u32,
    /// Windows at most.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
}

/// Sums over scored tokens, in nats.
#[derive(Debug, Default)]
struct Sums {
    tokens: u32,
    base_loss: f64,
    loss: f64,
    /// KL(base || variant).
    divergence: f64,
    /// Tokens whose likeliest token is the base's.
    agreed: u32,
}

pub(super) fn perplexity(args: &PerplexityArgs) -> Result<String, CliError> {
    let ids = read_ids(&args.ids)?;
    let bundle = Bundle::open(&args.bundle)?;
    let plan = bundle.plan(args.engine.plan.as_deref())?;
    // A software adapter's own kernels have no variants.
    let kernels = Some(DecodeKernels::Fused);
    let mut engine = make_engine(&args.engine, &bundle, plan, args.window, kernels, false)?;
    let variant = engine.variant();
    if variant == Variant::BASE {
        return Err(CliError::NothingToCompare);
    }
    let mut sums = Sums::default();
    let windows = ids
        .chunks_exact(args.window as usize)
        .take(args.windows as usize);
    for window in windows {
        pollster::block_on(engine.set_variant(Variant::BASE))?;
        let base = scored(&mut engine, window)?;
        pollster::block_on(engine.set_variant(variant))?;
        let other = scored(&mut engine, window)?;
        let next = window.iter().skip(window.len() / 2);
        for ((base, other), &id) in base.iter().zip(&other).zip(next) {
            sums.add(base, other, id as usize);
        }
    }
    if sums.tokens == 0 {
        return Err(CliError::Ids {
            path: args.ids.clone(),
            reason: format!(
                "expected a window of {} tokens at least, found {}",
                args.window,
                ids.len()
            ),
        });
    }
    Ok(render(args, &engine, &sums))
}

/// Log-probabilities before each token of the second half of `window`.
fn scored(engine: &mut Engine, window: &[u32]) -> Result<Vec<Vec<f32>>, CliError> {
    let (first, second) = window.split_at(window.len() / 2);
    engine.reset();
    prefill(engine, first)?;
    let mut all = vec![log_softmax(pollster::block_on(engine.logits())?)];
    for &id in second.iter().take(second.len() - 1) {
        engine.choose(id)?;
        all.push(log_softmax(pollster::block_on(engine.logits())?));
    }
    Ok(all)
}

#[expect(clippy::cast_possible_truncation, reason = "a logarithm of f32")]
fn log_softmax(mut logits: Vec<f32>) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    let log = largest + sum.ln() as f32;
    for logit in &mut logits {
        *logit -= log;
    }
    logits
}

impl Sums {
    /// Takes in a token `id` and its log-probabilities under both.
    fn add(&mut self, base: &[f32], other: &[f32], id: usize) {
        let loss = |all: &[f32]| -f64::from(all.get(id).copied().unwrap_or(f32::NAN));
        let pairs = || {
            base.iter()
                .zip(other)
                .map(|(&base, &other)| (f64::from(base), f64::from(other)))
        };
        let likeliest = |all: &[f32]| {
            let better = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1);
            all.iter().enumerate().max_by(better).map(|(id, _)| id)
        };
        self.tokens += 1;
        self.base_loss += loss(base);
        self.loss += loss(other);
        self.divergence += pairs()
            .map(|(base, other)| base.exp() * (base - other))
            .sum::<f64>();
        self.agreed += u32::from(likeliest(base) == likeliest(other));
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / f64::from(self.tokens)
    }
}

fn render(args: &PerplexityArgs, engine: &Engine, sums: &Sums) -> String {
    let (base, other) = (sums.mean(sums.base_loss).exp(), sums.mean(sums.loss).exp());
    let divergence = sums.mean(sums.divergence);
    let agreement = sums.mean(f64::from(sums.agreed));
    if args.engine.json {
        let document = json!({
            "schema": 1,
            "model": engine.setup().manifest().name,
            "plan": engine.setup().plan().name,
            "adapter": adapter(engine),
            "window": args.window,
            "tokens": sums.tokens,
            "basePerplexity": base,
            "perplexity": other,
            "meanDivergence": divergence,
            "sameLikeliest": agreement,
        });
        return document.to_string();
    }
    format!(
        "{}: perplexity {other:.4}, base {base:.4} ({:.5} of it), over {} tokens\n\
         mean KL from base {divergence:.6} nats, the same likeliest token {agreement:.4}",
        engine.variant(),
        other / base,
        sums.tokens,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_nothing_and_others_do() {
        let base = log_softmax(vec![1.0, 2.0, 3.0]);
        let total: f64 = base.iter().map(|&log| f64::from(log).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
        let mut sums = Sums::default();
        sums.add(&base, &base, 2);
        assert!(
            sums.divergence.abs() < 1e-12 && sums.agreed == 1,
            "{sums:?}"
        );
        assert!((sums.loss - sums.base_loss).abs() < 1e-12, "{sums:?}");
        sums.add(&base, &log_softmax(vec![3.0, 2.0, 1.0]), 2);
        assert!(sums.divergence > 0.5 && sums.agreed == 1, "{sums:?}");
        assert!(sums.loss > sums.base_loss + 1.0, "{sums:?}");
    }
}
