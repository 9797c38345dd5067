//! `moa-run bench`: prefill and decode in the manner of llama-bench: so many tokens of prompt, and so many decoded
//! at a depth, repeated; the median and the spread are given, no judgment.

use std::time::Instant;

use clap::Args;
use moa_runtime_web::bundle::Bundle;
use moa_runtime_web::{Engine, MAX_DECODE_BATCH};
use serde_json::json;

use super::run::{adapter, make_engine};
use super::{CliError, EngineArgs};

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    /// Tokens of the prompt that is timed; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: u32,
    /// Tokens decoded at each depth.
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode_tokens: u32,
    /// Tokens in the cache before decoding starts; may be given several times.
    #[arg(long, value_name = "N", default_values_t = [0])]
    depth: Vec<u32>,
    /// Times that each measurement is made.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: u32,
    /// Greedy tokens in one submit.
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: u32,
}

/// One row of the table.
struct Row {
    name: String,
    tokens: u32,
    secs: Vec<f64>,
}

pub(super) fn bench(args: &BenchArgs) -> Result<String, CliError> {
    let bundle = Bundle::open(&args.engine.bundle)?;
    let plan = bundle.plan(args.engine.plan.as_deref())?;
    let deepest = args.depth.iter().max().copied().unwrap_or(0);
    let needed = args
        .prompt_tokens
        .max(deepest.saturating_add(args.decode_tokens).saturating_add(1));
    let mut engine = make_engine(&args.engine, &bundle, plan, needed)?;
    let vocab = bundle.manifest().model.vocab_size;
    let ids =
        |count: u32| -> Vec<u32> { (0..count).map(|n| n.wrapping_mul(7919) % vocab).collect() };

    let mut rows = Vec::new();
    if args.prompt_tokens > 0 {
        let prompt = ids(args.prompt_tokens);
        let mut row = Row {
            name: format!("pp{}", args.prompt_tokens),
            tokens: args.prompt_tokens,
            secs: Vec::new(),
        };
        for _ in 0..args.repetitions {
            engine.reset();
            let started = Instant::now();
            prefill(&mut engine, &prompt)?;
            row.secs.push(started.elapsed().as_secs_f64());
        }
        rows.push(row);
    }
    for &depth in args.depth.iter().filter(|_| args.decode_tokens > 0) {
        let before = ids(depth.max(1));
        let name = format!("tg{}@d{depth}", args.decode_tokens);
        let mut row = Row {
            name,
            tokens: args.decode_tokens,
            secs: Vec::new(),
        };
        for _ in 0..args.repetitions {
            engine.reset();
            prefill(&mut engine, &before)?;
            let started = Instant::now();
            let mut left = args.decode_tokens;
            while left > 0 {
                let count = left.min(args.batch.clamp(1, MAX_DECODE_BATCH));
                pollster::block_on(engine.decode(count))?;
                left -= count;
            }
            row.secs.push(started.elapsed().as_secs_f64());
        }
        rows.push(row);
    }
    render(args, &engine, &rows)
}

fn prefill(engine: &mut Engine, ids: &[u32]) -> Result<(), CliError> {
    let mut taken = 0;
    while taken < ids.len() {
        taken += pollster::block_on(engine.prefill(&ids[taken..]))?;
    }
    Ok(())
}

fn render(args: &BenchArgs, engine: &Engine, rows: &[Row]) -> Result<String, CliError> {
    let setup = engine.setup();
    if args.engine.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| json!({ "name": row.name, "tokens": row.tokens, "secs": row.secs, "tokensPerSec": row.rate() }))
            .collect();
        let document = json!({
            "schema": 1,
            "model": setup.manifest().name,
            "plan": setup.plan().name,
            "context": setup.context(),
            "kv": setup.kv_report()?,
            "adapter": adapter(engine),
            "dispatchesPerToken": engine.dispatches_per_token(),
            "rows": rows,
        });
        return Ok(document.to_string());
    }
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let (low, high) = row.spread();
            format!(
                "{:<16} {:>10.2} tokens/s   {:.3} to {:.3} s",
                row.name,
                row.rate(),
                low,
                high
            )
        })
        .collect();
    Ok(lines.join("\n"))
}

impl Row {
    fn rate(&self) -> f64 {
        let mut secs = self.secs.clone();
        secs.sort_by(f64::total_cmp);
        secs.get(secs.len() / 2)
            .map_or(f64::NAN, |median| f64::from(self.tokens) / median)
    }

    fn spread(&self) -> (f64, f64) {
        let low = self.secs.iter().copied().fold(f64::INFINITY, f64::min);
        (low, self.secs.iter().copied().fold(0.0, f64::max))
    }
}
