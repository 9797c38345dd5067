//! `moa-run bench`: prefill and decode in the manner of llama-bench: so many tokens of prompt, and so many decoded
//! at a depth, repeated; the median and the spread are given, no judgment. Before anything is timed, the two ways to
//! the same logits (decoded token by token, prefilled at once) must agree.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use moa_runtime_web::bundle::Bundle;
use moa_runtime_web::{
    Ceilings, DecodeKernels, Engine, EngineError, KernelTime, MAX_DECODE_BATCH, Sampler, Setup,
    probe,
};
use serde_json::json;

use super::run::{adapter, load, make_engine, prefill};
use super::shapes::Shape;
use super::{CliError, EngineArgs};

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    /// Folder that `moa-compile build` wrote.
    #[arg(long, value_name = "DIR", required_unless_present = "shape")]
    bundle: Option<PathBuf>,
    /// Random weights of a well-known shape instead of a bundle.
    #[arg(long, value_name = "NAME", conflicts_with = "bundle")]
    shape: Option<Shape>,
    /// With a shape: kv_density of its plan at the declared context.
    #[arg(long, value_name = "PART", default_value_t = 1.0, requires = "shape")]
    density: f64,
    /// Tokens of a prompt that is timed; may be given several times, 0 for none.
    #[arg(long, value_name = "N", default_values_t = [512, 4096])]
    prompt_tokens: Vec<u32>,
    /// Tokens decoded at each depth, after a first one that is not timed.
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode_tokens: u32,
    /// Tokens in the cache before decoding starts; may be given several times. The model's maximum is written `max`.
    #[arg(long, value_name = "N|max", default_values_t = ["0".to_owned(), "4096".to_owned(), "max".to_owned()])]
    depth: Vec<String>,
    /// Times that each measurement is made.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: u32,
    /// Tokens in one submit.
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: u32,
    /// One operation a dispatch in decode, to compare with.
    #[arg(long)]
    separate: bool,
    /// Time every kernel of a decoded token at every depth, beside the device's own ceilings.
    #[arg(long)]
    kernels: bool,
    /// Only assume that the tokens of a depth are in the cache: figures are the same, and no prefill is waited for.
    #[arg(long)]
    assume_depth: bool,
}

/// One row of the table.
struct Row {
    name: String,
    tokens: u32,
    secs: Vec<f64>,
    /// Of these, what the host took to write the commands, while the device worked on earlier ones.
    host_secs: Vec<f64>,
}

/// The kernels of a token at a depth, and a whole token.
struct KernelTable {
    depth: u32,
    kernels: Vec<KernelTime>,
    token_secs: f64,
}

pub(super) fn bench(args: &BenchArgs) -> Result<String, CliError> {
    let most_prompt = args.prompt_tokens.iter().max().copied().unwrap_or(0);
    let tail = tail(args.decode_tokens);
    let needed = |depths: &[u32]| {
        let deepest = depths.iter().max().copied().unwrap_or(0);
        most_prompt.max(deepest.saturating_add(tail)).max(CHECKED)
    };
    let kernels = Some(if args.separate {
        DecodeKernels::Separate
    } else {
        DecodeKernels::Fused
    });
    let (mut engine, depths) = match (args.shape, &args.bundle) {
        (Some(shape), _) => {
            let (manifest, plan, shards) = shape
                .bundle(args.density)
                .map_err(|source| EngineError::Manifest { source })?;
            let most = args.engine.context.unwrap_or(manifest.model.max_context);
            let depths = depths(&args.depth, most, tail)?;
            let context = args.engine.context.unwrap_or(needed(&depths).min(most));
            let setup = Setup::new(manifest, plan, context)?.with_kv_format(args.engine.kv.into());
            let engine = load(&args.engine, setup, kernels, args.kernels, &shards)?;
            (engine, depths)
        }
        (None, bundle) => {
            let bundle = Bundle::open(bundle.as_deref().unwrap_or(".".as_ref()))?;
            let plan = bundle.plan(args.engine.plan.as_deref())?;
            let most = bundle.manifest().model.max_context;
            let most = args.engine.context.unwrap_or(most);
            let depths = depths(&args.depth, most, tail)?;
            let needed = needed(&depths);
            let engine = make_engine(&args.engine, &bundle, plan, needed, kernels, args.kernels)?;
            (engine, depths)
        }
    };
    let vocab = engine.setup().config().vocab_size;
    let ids =
        |count: u32| -> Vec<u32> { (0..count).map(|n| n.wrapping_mul(7919) % vocab).collect() };
    let error = check(&mut engine, &ids(CHECKED - 5))?;

    let mut rows = Vec::new();
    for &tokens in args.prompt_tokens.iter().filter(|tokens| **tokens > 0) {
        let prompt = ids(tokens);
        let mut row = Row {
            name: format!("pp{tokens}"),
            tokens,
            secs: Vec::new(),
            host_secs: Vec::new(),
        };
        for _ in 0..args.repetitions {
            engine.reset();
            let started = Instant::now();
            prefill(&mut engine, &prompt)?;
            row.secs.push(started.elapsed().as_secs_f64());
        }
        rows.push(row);
    }
    let greedy = Sampler::greedy();
    let mut tables = Vec::new();
    for &depth in &depths {
        let mut row = Row {
            name: format!("tg{}@d{depth}", args.decode_tokens),
            tokens: args.decode_tokens,
            secs: Vec::new(),
            host_secs: Vec::new(),
        };
        for _ in 0..args.repetitions {
            at_depth(&mut engine, args, &ids(depth.max(1)))?;
            // The first token comes from logits that are there: it is chosen before the clock starts, so that each of those
            // timed takes a whole forward pass.
            if args.decode_tokens > 0 {
                pollster::block_on(engine.decode(1))?;
            }
            let started = Instant::now();
            let (mut left, mut begun, mut host) = (args.decode_tokens, 0, 0.0);
            let most = args.batch.clamp(1, MAX_DECODE_BATCH);
            // A small batch comes first, as in generation, so that the device need not wait for a large one to be written.
            let mut batch = 1;
            while left > 0 {
                while engine.in_flight() < 2 && begun < args.decode_tokens {
                    let count = (args.decode_tokens - begun).min(batch);
                    batch = (2 * batch).min(most);
                    let writing = Instant::now();
                    engine.begin(count, &greedy)?;
                    host += writing.elapsed().as_secs_f64();
                    begun += count;
                }
                let ids = pollster::block_on(engine.collect())?;
                left = left.saturating_sub(u32::try_from(ids.len()).unwrap_or(left));
            }
            row.secs.push(started.elapsed().as_secs_f64());
            row.host_secs.push(host);
        }
        if args.decode_tokens > 0 {
            rows.push(row);
        }
        if args.kernels {
            at_depth(&mut engine, args, &ids(depth.max(1)))?;
            let kernels = pollster::block_on(engine.time_kernels(KERNEL_SAMPLES))?;
            at_depth(&mut engine, args, &ids(depth.max(1)))?;
            tables.push(KernelTable {
                depth,
                kernels,
                token_secs: pollster::block_on(engine.time_token(TOKEN_SAMPLES))?,
            });
        }
    }
    let ceilings = args
        .kernels
        .then(|| pollster::block_on(probe(engine.gpu())))
        .transpose()?;
    Ok(render(args, &engine, error, &rows, ceilings, &tables)?)
}

/// Tokens of the check before timing, those decoded included.
const CHECKED: u32 = 64;
/// Times over which the median of a kernel's time is taken.
const KERNEL_SAMPLES: u32 = 21;
/// Times over which the median of a whole token's time is taken.
const TOKEN_SAMPLES: u32 = 9;
/// Of the largest logit: f32 sums in another order, through f16 caches.
const CHECK_TOLERANCE: f32 = 2e-2;

/// Tokens beyond a depth that the context must hold: those timed are fed one after the other from the one that was chosen
/// before, and a depth of 0 is a prompt of one token.
fn tail(decode_tokens: u32) -> u32 {
    decode_tokens.saturating_add(1)
}

/// The depths that were asked for, those that do not fit left out, `max` the last at which all tokens fit.
fn depths(asked: &[String], context: u32, tail: u32) -> Result<Vec<u32>, CliError> {
    let most = context.saturating_sub(tail);
    let mut depths = Vec::new();
    for text in asked {
        let depth = match text.as_str() {
            "max" => most,
            digits => digits
                .parse()
                .map_err(|_not_a_number| EngineError::BadArgument {
                    what: "depth",
                    got: text.clone(),
                    expected: "a number of tokens, or max",
                })?,
        };
        if depth <= most {
            depths.push(depth);
        }
    }
    depths.sort_unstable();
    depths.dedup();
    Ok(depths)
}

/// The same text decoded token by token and prefilled at once must give the same logits; the largest difference, as a
/// part of the largest logit, is returned.
fn check(engine: &mut Engine, prompt: &[u32]) -> Result<f32, CliError> {
    prefill(engine, prompt)?;
    let chosen = pollster::block_on(engine.decode(4))?;
    let decoded = pollster::block_on(engine.logits())?;
    engine.reset();
    prefill(engine, &[prompt, &chosen].concat())?;
    let prefilled = pollster::block_on(engine.logits())?;
    engine.reset();
    let largest = prefilled
        .iter()
        .fold(0.0f32, |max, logit| max.max(logit.abs()));
    let differences = decoded.iter().zip(&prefilled).map(|(a, b)| (a - b).abs());
    let error =
        differences.fold(0.0f32, |max, error| if error <= max { max } else { error }) / largest;
    if error < CHECK_TOLERANCE {
        Ok(error)
    } else {
        Err(CliError::Check { error })
    }
}

fn at_depth(engine: &mut Engine, args: &BenchArgs, before: &[u32]) -> Result<(), CliError> {
    engine.reset();
    if args.assume_depth {
        prefill(engine, &before[..1])?;
        let depth = u32::try_from(before.len()).unwrap_or(u32::MAX);
        return Ok(engine.assume_len(depth)?);
    }
    prefill(engine, before)
}

fn render(
    args: &BenchArgs,
    engine: &Engine,
    error: f32,
    rows: &[Row],
    ceilings: Option<Ceilings>,
    tables: &[KernelTable],
) -> Result<String, EngineError> {
    let setup = engine.setup();
    if args.engine.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| json!({ "name": row.name, "tokens": row.tokens, "secs": row.secs, "hostSecs": row.host_secs, "tokensPerSec": row.rate() }))
            .collect();
        let tables: Vec<_> = tables
            .iter()
            .map(|table| json!({ "depth": table.depth, "kernels": table.kernels, "tokenSecs": table.token_secs }))
            .collect();
        let ceilings = ceilings.map(|ceilings| {
            json!({
                "readBytesPerSec": ceilings.read_bytes_per_sec,
                "emptyDispatchSecs": ceilings.empty_dispatch_secs,
            })
        });
        let document = json!({
            "schema": 2,
            "model": setup.manifest().name,
            "plan": setup.plan().name,
            "context": setup.context(),
            "kv": setup.kv_report()?,
            "gpuBytes": engine.ledger(),
            "adapter": adapter(engine),
            "dispatchesPerToken": engine.dispatches_per_token(),
            "checkError": error,
            "rows": rows,
            "ceilings": ceilings,
            "kernels": tables,
        });
        return Ok(document.to_string());
    }
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let (low, high) = row.spread();
            format!(
                "{:<16} {:>10.2} tokens/s   {:.4} to {:.4} s{}",
                row.name,
                row.rate(),
                low,
                high,
                row.host()
            )
        })
        .collect();
    lines.push(format!(
        "{} dispatches a token, GPU bytes {:?}, check {error:.1e}",
        engine.dispatches_per_token(),
        engine.ledger()
    ));
    if let Some(ceilings) = ceilings {
        lines.extend(kernel_lines(ceilings, tables));
    }
    Ok(lines.join("\n"))
}

/// Each kernel beside its floor: its bytes at the read bandwidth, or its dispatches if they did nothing.
fn kernel_lines(ceilings: Ceilings, tables: &[KernelTable]) -> Vec<String> {
    let mut lines = vec![format!(
        "read {:.0} GB/s, an empty dispatch {:.2} us",
        ceilings.read_bytes_per_sec / 1e9,
        ceilings.empty_dispatch_secs * 1e6
    )];
    for table in tables {
        lines.push(format!(
            "{:<36} {:>5} {:>10} {:>10} {:>10} {:>8}",
            format!("at depth {}", table.depth),
            "times",
            "us",
            "floor us",
            "MB",
            "GB/s"
        ));
        let mut sums = (0, 0.0, 0.0, 0.0);
        for kernel in &table.kernels {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let bytes = kernel.bytes as f64;
            let floor = bytes / ceilings.read_bytes_per_sec
                + f64::from(kernel.dispatches) * ceilings.empty_dispatch_secs;
            lines.push(format!(
                "{:<36} {:>5} {:>10.1} {:>10.1} {:>10.2} {:>8.0}",
                kernel.kernel,
                kernel.dispatches,
                kernel.secs * 1e6,
                floor * 1e6,
                bytes / 1e6,
                bytes / kernel.secs / 1e9
            ));
            sums = (
                sums.0 + kernel.dispatches,
                sums.1 + kernel.secs,
                sums.2 + floor,
                sums.3 + bytes,
            );
        }
        lines.push(format!(
            "{:<36} {:>5} {:>10.1} {:>10.1} {:>10.2} {:>8.0}",
            "all",
            sums.0,
            sums.1 * 1e6,
            sums.2 * 1e6,
            sums.3 / 1e6,
            sums.3 / sums.1 / 1e9
        ));
        lines.push(format!(
            "{:<36} {:>5} {:>10.1} {:>10.1}",
            "a whole token",
            "",
            table.token_secs * 1e6,
            sums.2 * 1e6
        ));
    }
    lines
}

impl Row {
    fn rate(&self) -> f64 {
        let mut secs = self.secs.clone();
        secs.sort_by(f64::total_cmp);
        secs.get(secs.len() / 2)
            .map_or(f64::NAN, |median| f64::from(self.tokens) / median)
    }

    /// What the host took, where it was measured.
    fn host(&self) -> String {
        let most = self.host_secs.iter().copied().fold(f64::NAN, f64::max);
        if most.is_nan() {
            String::new()
        } else {
            format!(", the host at most {most:.4} s")
        }
    }

    fn spread(&self) -> (f64, f64) {
        let low = self.secs.iter().copied().fold(f64::INFINITY, f64::min);
        (low, self.secs.iter().copied().fold(0.0, f64::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_that_do_not_fit_are_left_out() {
        let asked = ["0", "4096", "max"].map(str::to_owned);
        assert_eq!(depths(&asked, 8192, tail(128)).unwrap(), [0, 4096, 8063]);
        assert_eq!(depths(&asked, 1000, 129).unwrap(), [0, 871]);
        assert!(depths(&["deep".to_owned()], 1000, 1).is_err());
    }

    #[test]
    fn what_is_fed_fits_at_every_depth() {
        let (context, tokens) = (640, 128);
        let deepest = depths(&["0".to_owned(), "max".to_owned()], context, tail(tokens)).unwrap();
        assert_eq!(deepest, [0, 511]);
        for depth in deepest {
            assert!(depth.max(1) + tokens <= context);
        }
    }
}
