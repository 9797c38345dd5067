//! `eval`: plans and baselines compared on the same prompts.

use std::path::Path;

use moa_format::KV_VALUE_BYTES;
use moa_mask::{KvFormat, PREFILL_CHUNK};
use serde_json::{Value, json};

use crate::cli::Eval;
use crate::device;
use crate::evaluate::{
    Corpus, EvaluationPlan, Family, Method, Records, RowLog, Summary, Under, scorer_of,
};
use crate::hint::Told;
use crate::interrupt;
use crate::pipeline::TOOL;
use crate::printer::Printer;
use crate::source::Source;

pub(crate) fn run(args: &Eval, printer: &Printer) -> anyhow::Result<()> {
    let place = device::choose(args.device, printer)?;
    if args.trials == 0 || args.methods.is_empty() || args.lengths.is_empty() {
        return Err(Told::new(
            "there is nothing to evaluate",
            "pass at least one trial, method and length",
        )
        .into());
    }
    let source = Source::open(&args.model)?;
    let (families, records) = suites(&args.suites)?;
    let tokenizer = source.tokenizer();
    let corpus = Corpus::open(
        args.text.as_deref(),
        tokenizer.map(|tokenizer| tokenizer as _),
        source.config(),
    )?;
    let mut methods = Method::parse_all(&args.methods, &source)?;
    // What the others are compared with comes first.
    methods.sort_by_key(|method| !method.is_dense());
    let corpus_name = corpus.name();
    let plan = EvaluationPlan {
        tokenizer,
        model: source.identity()?,
        families,
        records,
        corpus,
        lengths: args.lengths.clone(),
        trials: args.trials,
        methods,
        context: args.context,
        seed: args.seed,
    };
    let mut log = RowLog::open(args.trials_out.as_deref())?;
    if log.len() > 0 {
        printer.say(format!("{} trials were run before", log.len()));
    }
    let model = device::load(&place, &source, printer)?;
    let cancel = interrupt::flag();
    let scorer = scorer_of(&model, &source, cancel);
    let rows = plan.run(&*scorer, &mut log, printer, cancel)?;
    let names: Vec<String> = plan
        .methods
        .iter()
        .map(|method| method.name.clone())
        .collect();
    let summary = Summary::of(&rows, &names, args.seed);
    let mut memory = Vec::new();
    for method in &plan.methods {
        for context in rows
            .iter()
            .map(|row| row.context)
            .collect::<std::collections::BTreeSet<_>>()
        {
            memory.push(costs(
                &method.name,
                &method.under(source.config(), context)?,
                &source,
            )?);
        }
    }
    let document = json!({
        "schema_version": 2,
        "tool": TOOL,
        "model": plan.model,
        "device": scorer.device(),
        "seed": args.seed,
        "text": corpus_name,
        "methods": memory,
        "cells": summary.cells,
        "contrasts": summary.contrasts,
        "effective": summary.effective,
    });
    printer.result(&document, summary.tables())?;
    Ok(())
}

/// What a method costs at a declared context.
fn costs(name: &str, under: &Under, source: &Source) -> anyhow::Result<Value> {
    let config = source.config();
    let shape = config.kv_shape();
    let rows = shape
        .kv_bytes(&under.masks, under.context, PREFILL_CHUNK, KV_VALUE_BYTES)?
        .total()
        / KvFormat::Sixteen.row_bytes(shape.head_dim);
    Ok(json!({
        "method": name,
        "context": under.context,
        "kv_density": moa_mask::density::kv_density(under.masks.iter(), under.context),
        "attention_density": moa_mask::density::attention_density(under.masks.iter(), under.context),
        "kv_bytes": rows * under.format().row_bytes(shape.head_dim),
        "dense_bytes": shape.dense_bytes(under.context, KV_VALUE_BYTES),
    }))
}

/// The suites of a list, and the records of the one that needs a file.
fn suites(names: &[String]) -> anyhow::Result<(Vec<Family>, Option<Records>)> {
    let mut families = Vec::new();
    let mut records = None;
    for name in names {
        let family = if let Some(path) = name.strip_prefix("longbench:") {
            if records.is_some() {
                return Err(Told::new(
                    "longbench is asked for twice",
                    "put the records into one file, or run twice with the same --trials-out",
                )
                .into());
            }
            records = Some(Records::open(Path::new(path))?);
            Family::Longbench
        } else {
            let known = Family::BUILTIN
                .into_iter()
                .find(|family| family.name() == name);
            known.ok_or_else(|| {
                let all: Vec<&str> = Family::BUILTIN.iter().map(|family| family.name()).collect();
                Told::new(
                    format!("there is no suite `{name}`"),
                    format!("choose among {}, longbench:FILE", all.join(", ")),
                )
            })?
        };
        if !families.contains(&family) {
            families.push(family);
        }
    }
    Ok((families, records))
}
