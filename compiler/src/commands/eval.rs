//! `eval`: plans compared on the same prompts by what the model writes, nothing given of the answer.

use std::ops::ControlFlow;

use moa_format::{ModelConfig, Plan};
use moa_lm::{Cpu, GenerateOptions, Lm, Sampler, SamplerOptions, generate};
use moa_mask::density::kv_density;
use moa_mask::{HeadMask, ModelMasks};
use moa_model::ChatTokenizer;
use serde_json::json;

use crate::cli::Eval;
use crate::device;
use crate::evaluate::passkey::{self, MAX_NEW_TOKENS, PasskeyTrial};
use crate::hint::Told;
use crate::interrupt;
use crate::plans;
use crate::printer::Printer;
use crate::source::Source;

/// What is compared.
enum Method {
    Dense,
    Plan(Plan),
    /// One window for all heads, with the kv_density of a plan.
    Uniform(Plan),
}

impl Method {
    fn parse(text: &str, source: &Source) -> anyhow::Result<Self> {
        if text == plans::DENSE {
            return Ok(Self::Dense);
        }
        let (uniform, wanted) = match text.strip_prefix("uniform:") {
            Some(plan) => (true, plan),
            None => (false, text),
        };
        match plans::resolve(source, Some(wanted))? {
            Some(plan) if uniform => Ok(Self::Uniform(plan)),
            Some(plan) => Ok(Self::Plan(plan)),
            None => Ok(Self::Dense),
        }
    }

    /// Masks at a declared context length. A uniform window gets at least the tokens that the plan's heads keep
    /// on average: rounded up, to its advantage.
    fn masks(&self, config: &ModelConfig, context: u32) -> anyhow::Result<ModelMasks> {
        let (layers, kv_heads) = (config.layers as usize, config.kv_heads as usize);
        match self {
            Self::Dense => Ok(ModelMasks::dense(layers, kv_heads)),
            Self::Plan(plan) => Ok(plan.masks(context)?),
            Self::Uniform(plan) => {
                let kept = kv_density(plan.masks(context)?.iter(), context) * f64::from(context);
                let span = plan
                    .grid()?
                    .ceil_to_block(kept)
                    .max(plan.grid()?.min_span());
                Ok(ModelMasks::uniform(
                    layers,
                    kv_heads,
                    HeadMask::from_span(span, plan.sink),
                ))
            }
        }
    }
}

pub(crate) fn run(args: &Eval, printer: &Printer) -> anyhow::Result<()> {
    device::choose(args.device, printer)?;
    if args.trials == 0 || args.methods.is_empty() || args.lengths.is_empty() {
        return Err(Told::new(
            "there is nothing to evaluate",
            "pass at least one trial, method and length",
        )
        .into());
    }
    let source = Source::open(&args.model)?;
    let Some(tokenizer) = source.tokenizer() else {
        return Err(Told::new(
            "this model has no tokenizer",
            "evaluation asks questions in words",
        )
        .into());
    };
    let methods = args
        .methods
        .iter()
        .map(|text| Ok((text.clone(), Method::parse(text, &source)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let lm = device::load(&source, printer)?;
    let bar = printer.bar(
        "evaluating",
        (args.lengths.len() * args.trials * methods.len()) as u64,
    );
    let mut cells = Vec::new();
    let mut text = String::from("| method | length | kv_density | passkey |\n|---|---|---|---|\n");
    for &length in &args.lengths {
        let trials = passkey::trials(tokenizer, length, args.trials, args.seed)?;
        for (name, method) in &methods {
            let context = args.context.unwrap_or(length + MAX_NEW_TOKENS);
            let masks = method.masks(source.config(), context)?;
            let mut answers = Vec::with_capacity(trials.len());
            for trial in &trials {
                answers.push(answer(&lm, tokenizer, &masks, context, trial)?);
                bar.inc(1);
            }
            let right = trials
                .iter()
                .zip(&answers)
                .filter(|(trial, answer)| trial.is_right(answer))
                .count();
            let density = kv_density(masks.iter(), context);
            text += &format!(
                "| {name} | {length} | {density:.4} | {right}/{} |\n",
                trials.len()
            );
            let rows: Vec<_> = trials
                .iter()
                .zip(&answers)
                .map(|(trial, answer)| {
                    json!({"number": trial.number, "depth": trial.depth, "answer": answer, "right": trial.is_right(answer)})
                })
                .collect();
            cells.push(json!({
                "suite": "passkey",
                "method": name,
                "length": length,
                "context": context,
                "kv_density": density,
                "right": right,
                "trials": rows,
            }));
        }
    }
    bar.finish_and_clear();
    printer.result(
        &json!({"schema_version": 1, "seed": args.seed, "cells": cells}),
        text,
    )?;
    Ok(())
}

/// What the model writes, greedily.
fn answer(
    lm: &Lm<Cpu>,
    tokenizer: &ChatTokenizer,
    masks: &ModelMasks,
    context: u32,
    trial: &PasskeyTrial,
) -> anyhow::Result<String> {
    let mut session = lm.session(Some(masks), context)?;
    let mut sampler = Sampler::new(SamplerOptions::GREEDY)?;
    let options = GenerateOptions {
        max_tokens: MAX_NEW_TOKENS as usize,
        stop: &lm.config().eos,
    };
    let mut written: Vec<u32> = Vec::new();
    let generated = generate(
        &mut session,
        &trial.ids,
        &options,
        &mut sampler,
        interrupt::flag(),
        &mut |id| {
            written.push(id);
            // A number that has ended decides the trial; what comes after changes nothing.
            let decided = tokenizer.decode(&written, true).is_ok_and(|text| {
                text.ends_with(|last: char| !last.is_ascii_digit() && last != ',')
                    && trial.is_right(&text)
            });
            if decided {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    )?;
    Ok(tokenizer.decode(&generated.tokens, true)?)
}
