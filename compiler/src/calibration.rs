//! The samples of one run: from the source that was asked for, with missing responses written by the dense model.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use moa_format::sha256_hex;
use moa_lm::{GenerateOptions, Sampler, SamplerOptions, generate};

use crate::calibrate::{
    Calibration, CalibrationSource, Kind, RESPONSE_TOKENS, Sample, Tokenize, samples_sha256,
};
use crate::cli::ProfileArgs;
use crate::effort::Preset;
use crate::hint::Told;
use crate::interrupt;
use crate::pipeline::Opened;
use crate::printer::Printer;

/// Samples by the length that they are profiled at.
pub(crate) struct Gathered {
    pub(crate) samples: BTreeMap<u32, Vec<Sample>>,
    /// Hash of every sample as it is profiled.
    pub(crate) sha256: String,
}

/// Gathers the samples of every length.
pub(crate) fn gather(
    opened: &Opened,
    args: &ProfileArgs,
    preset: &Preset,
    printer: &Printer,
) -> anyhow::Result<Gathered> {
    let source = match &args.calibration {
        Some(path) => CalibrationSource::of_file(path),
        None => CalibrationSource::Builtin(Kind::ALL.to_vec()),
    };
    let tokenizer = opened
        .source
        .tokenizer()
        .map(|tokenizer| tokenizer as &dyn Tokenize);
    let calibration = Calibration::open(&source, tokenizer, opened.source.config().vocab_size)?;
    let mut samples = BTreeMap::new();
    for &length in &preset.lengths {
        let list = calibration.samples(tokenizer, length, preset.samples, args.seed)?;
        samples.insert(length, list);
    }
    let missing = samples
        .values()
        .flatten()
        .filter(|sample| sample.needs_response())
        .count();
    if missing > 0 {
        let bar = printer.bar("writing responses", missing as u64);
        for (&length, list) in &mut samples {
            for sample in list.iter_mut().filter(|sample| sample.needs_response()) {
                respond(opened, sample, length, printer)?;
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

/// Has the dense model write a sample's response, greedily.
fn respond(
    opened: &Opened,
    sample: &mut Sample,
    length: u32,
    printer: &Printer,
) -> anyhow::Result<()> {
    let lm = opened.lm(printer)?;
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
