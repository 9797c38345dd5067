//! The samples of one run: from the source that was asked for, with missing responses written by the dense model.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use moa_format::sha256_hex;
use moa_lm::{Device, GenerateOptions, Lm, Sampler, SamplerOptions, generate};

use crate::calibrate::{
    Calibration, CalibrationSource, Kind, RESPONSE_TOKENS, Sample, Tokenize, samples_sha256,
};
use crate::cli::{ProfileArgs, TargetChoice};
use crate::device::on;
use crate::effort::Preset;
use crate::hint::Told;
use crate::interrupt;
use crate::opened::Opened;
use crate::printer::Printer;

/// Between the seeds of samples that must not be the same.
const BETWEEN_SEEDS: u64 = 0x9E37_79B9_7F4A_7C15;

/// Samples by the length that they are profiled at.
pub(crate) struct Gathered {
    pub(crate) samples: BTreeMap<u32, Vec<Sample>>,
    /// Hash of every sample as it is profiled.
    pub(crate) sha256: String,
}

/// Which samples are wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wish<'a> {
    /// A file; without one the built-in kinds.
    pub(crate) file: Option<&'a Path>,
    /// A plain text in place of the built-in prose.
    pub(crate) text: Option<&'a Path>,
    pub(crate) lengths: Vec<u32>,
    /// Samples of each kind at each length.
    pub(crate) count: usize,
    pub(crate) seed: u64,
    /// Samples of each kind that other wishes with the same seed have taken: none of those is given.
    pub(crate) after: usize,
    /// Whether every token carries loss.
    pub(crate) all_targets: bool,
}

impl<'a> Wish<'a> {
    /// What `args` ask for, lengths and counts from their preset.
    pub(crate) fn of(args: &'a ProfileArgs, preset: &Preset) -> Self {
        Self {
            file: args.calibration.as_deref(),
            text: args.text.as_deref(),
            lengths: preset.lengths.clone(),
            count: preset.samples,
            seed: args.seed,
            after: 0,
            all_targets: args.targets == TargetChoice::All,
        }
    }
}

/// Gathers the samples of every length.
pub(crate) fn gather(
    opened: &Opened,
    wish: &Wish<'_>,
    printer: &Printer,
) -> anyhow::Result<Gathered> {
    opened
        .stages
        .time("calibration", || written(opened, wish, printer))
        .and_then(|samples| answered(opened, samples, printer))
}

/// Samples as their source gives them; responses may be missing.
fn written(
    opened: &Opened,
    wish: &Wish<'_>,
    printer: &Printer,
) -> anyhow::Result<BTreeMap<u32, Vec<Sample>>> {
    let source = match wish.file {
        Some(path) => CalibrationSource::of_file(path),
        None => {
            let mut kinds = Kind::ALL.to_vec();
            kinds.retain(|kind| wish.text.is_none() || *kind != Kind::Prose);
            CalibrationSource::Builtin(kinds)
        }
    };
    let tokenizer = opened
        .source
        .tokenizer()
        .map(|tokenizer| tokenizer as &dyn Tokenize);
    let calibration = Calibration::open(&source, tokenizer, opened.source.config().vocab_size)?;
    // Built-in samples have no end: another seed gives others. A file's come in an order that the seed decides.
    let (seed, skip) = match source {
        CalibrationSource::Builtin(_) => (
            wish.seed
                .wrapping_add(BETWEEN_SEEDS.wrapping_mul(wish.after as u64)),
            0,
        ),
        _ => (wish.seed, wish.after),
    };
    let mut samples = BTreeMap::new();
    for &length in &wish.lengths {
        let list = calibration.samples(tokenizer, length, skip + wish.count, seed)?;
        let mut list = without_first(list, skip, printer);
        if let Some(path) = wish.text {
            let windows = opened
                .text(path)?
                .samples(length, wish.after + wish.count, wish.seed)?;
            list.extend(without_first(windows, wish.after, printer));
        }
        if wish.all_targets {
            for sample in list.iter_mut().filter(|sample| !sample.needs_response()) {
                sample.response_start = 1;
            }
        }
        samples.insert(length, list);
    }
    Ok(samples)
}

/// The same with every response there: what is missing, the dense model writes.
fn answered(
    opened: &Opened,
    mut samples: BTreeMap<u32, Vec<Sample>>,
    printer: &Printer,
) -> anyhow::Result<Gathered> {
    let missing = samples
        .values()
        .flatten()
        .filter(|sample| sample.needs_response())
        .count();
    if missing > 0 {
        let bar = printer.bar("writing responses", missing as u64);
        for (&length, list) in &mut samples {
            for sample in list.iter_mut().filter(|sample| sample.needs_response()) {
                on!(opened.lm(printer)?, lm => respond(lm, sample, length))?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
    }
    let hashes: Vec<String> = samples.values().map(|list| samples_sha256(list)).collect();
    Ok(Gathered {
        sha256: sha256_hex(hashes.concat().as_bytes()),
        samples,
    })
}

/// Drops the first `skip` samples of each kind. Where a kind has no more, its samples are used again, and that is said.
fn without_first(samples: Vec<Sample>, skip: usize, printer: &Printer) -> Vec<Sample> {
    if skip == 0 {
        return samples;
    }
    let mut kinds: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for sample in samples {
        kinds.entry(sample.kind.clone()).or_default().push(sample);
    }
    let mut kept = Vec::new();
    for (kind, mut list) in kinds {
        if list.len() > skip {
            list.drain(..skip);
        } else {
            printer.say(format!(
                "warning: the calibration has no {kind} samples left to hold out; measuring on those that were profiled"
            ));
        }
        kept.extend(list);
    }
    kept
}

/// Has the dense model write a sample's response, greedily.
fn respond<D: Device>(lm: &Lm<D>, sample: &mut Sample, length: u32) -> anyhow::Result<()> {
    let mut session = lm.session(None, length)?;
    let mut sampler = Sampler::new(SamplerOptions::GREEDY)?;
    let room = (length as usize)
        .saturating_sub(sample.ids.len())
        .min(RESPONSE_TOKENS as usize);
    let options = GenerateOptions {
        max_tokens: room,
        stop: &lm.config().eos,
    };
    let cancel = interrupt::flag();
    let written = generate(
        &mut session,
        &sample.ids,
        &options,
        &mut sampler,
        cancel,
        &mut |_| ControlFlow::Continue(()),
    )?;
    sample.ids.extend(&written.tokens);
    if sample.needs_response() {
        return Err(Told::new(
            "the model answers a calibration prompt with nothing",
            "give that record a response",
        )
        .into());
    }
    Ok(())
}
