//! `moa-run generate`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use moa_format::{CHUNK_BYTES, Plan};
use moa_runtime_web::bundle::Bundle;
use moa_runtime_web::{
    DecodeKernels, Engine, EngineOptions, Extras, Gpu, GpuOptions, Progress, Request, Sampler,
    SamplingOptions, Setup, Variant, generate as generate_tokens,
};
use serde_json::json;

use super::{ChosenVariant, CliError, EngineArgs};

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    /// Folder that `moa-compile build` wrote.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// JSON file with an array of token ids: the prompt.
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// Tokens to generate at most.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: u32,
    /// Tokens in one submit at most.
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: u32,
    /// Go on after the tokens that end a text.
    #[arg(long)]
    ignore_eos: bool,
    /// Divides the logits; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the k likeliest only.
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Draw from the likeliest that reach this probability together.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Leave out what is less likely than this part of the likeliest.
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Divide the logits of tokens in the text.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Take this off the logits of generated tokens.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// The same for each time that they were generated.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f64,
}

pub(super) fn generate(args: &GenerateArgs) -> Result<String, CliError> {
    let ids = read_ids(&args.ids)?;
    let sampler = Sampler::new(SamplingOptions {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
    })?;
    let bundle = Bundle::open(&args.bundle)?;
    let plan = bundle.plan(args.engine.plan.as_deref())?;
    let needed = u32::try_from(ids.len())
        .unwrap_or(u32::MAX)
        .saturating_add(args.max_tokens);
    let started = Instant::now();
    let mut engine = make_engine(&args.engine, &bundle, plan, needed, None, false)?;
    let load_secs = started.elapsed().as_secs_f64();

    let stop = if args.ignore_eos {
        Vec::new()
    } else {
        bundle.manifest().model.eos.clone()
    };
    let request = Request {
        prompt: &ids,
        max_tokens: args.max_tokens,
        stop: &stop,
        batch: args.batch,
    };
    let started = Instant::now();
    let mut prefill_secs = 0.0;
    let generated = pollster::block_on(generate_tokens(
        &mut engine,
        &request,
        &sampler,
        |progress| {
            if let Progress::Prefilled { .. } = progress {
                prefill_secs = started.elapsed().as_secs_f64();
            }
            true
        },
    ))?;
    let decode_secs = started.elapsed().as_secs_f64() - prefill_secs;
    if !args.engine.json {
        let words: Vec<String> = generated.tokens.iter().map(ToString::to_string).collect();
        return Ok(words.join(" "));
    }
    let setup = engine.setup();
    let document = json!({
        "schema": 1,
        "tokens": generated.tokens,
        "stop": generated.reason,
        "plan": setup.plan().name,
        "context": setup.context(),
        "kv": setup.kv_report()?,
        "gpuBytes": engine.ledger(),
        "adapter": adapter(&engine),
        "timings": {
            "loadSecs": load_secs,
            "prefillTokens": ids.len(),
            "prefillSecs": prefill_secs,
            "decodeTokens": generated.tokens.len(),
            "decodeSecs": decode_secs,
        },
    });
    Ok(document.to_string())
}

/// An engine for at least `needed` tokens, or for the context that was declared.
pub(super) fn make_engine(
    args: &EngineArgs,
    bundle: &Bundle,
    plan: Plan,
    needed: u32,
    decode_kernels: Option<DecodeKernels>,
    timestamps: bool,
) -> Result<Engine, CliError> {
    let context = args
        .context
        .unwrap_or(needed.clamp(1, bundle.manifest().model.max_context));
    let (gpu, options) = options(args, decode_kernels, timestamps);
    let setup = bundle.setup(plan, context)?.with_kv_format(args.kv.into());
    let mut engine = pollster::block_on(bundle.engine(setup, gpu, options))?;
    tune(args, &mut engine)?;
    Ok(engine)
}

/// An engine with the weights in `shards`.
pub(super) fn load(
    args: &EngineArgs,
    setup: Setup,
    decode_kernels: Option<DecodeKernels>,
    timestamps: bool,
    shards: &[Vec<u8>],
) -> Result<Engine, CliError> {
    let (gpu, options) = options(args, decode_kernels, timestamps);
    let gpu = pollster::block_on(Gpu::open(gpu, setup.needs()))?;
    let mut engine = pollster::block_on(Engine::new(gpu, setup, options))?;
    for (index, shard) in shards.iter().enumerate() {
        let mut offset = 0;
        for chunk in shard.chunks(CHUNK_BYTES as usize) {
            engine.write_shard(index, offset, chunk)?;
            offset += u64::from(CHUNK_BYTES);
        }
    }
    pollster::block_on(engine.finish_loading())?;
    tune(args, &mut engine)?;
    Ok(engine)
}

/// Finds the quickest kernels where nobody has said which.
fn tune(args: &EngineArgs, engine: &mut Engine) -> Result<(), CliError> {
    if args.variant == ChosenVariant::Auto && !engine.gpu().is_software() {
        pollster::block_on(engine.tune())?;
    }
    Ok(())
}

fn options(
    args: &EngineArgs,
    decode_kernels: Option<DecodeKernels>,
    timestamps: bool,
) -> (GpuOptions, EngineOptions) {
    let (extras, variant) = match args.variant {
        ChosenVariant::Auto => (Extras::ALL, Variant::BASE),
        ChosenVariant::Given(variant) => (Extras::of(variant), variant),
    };
    let gpu = GpuOptions {
        default_limits: args.default_limits,
        extras,
        low_power: false,
        timestamps,
    };
    let options = EngineOptions {
        prefill_chunk: args.prefill_chunk,
        decode_kernels,
        variant,
        ..EngineOptions::default()
    };
    (gpu, options)
}

pub(super) fn adapter(engine: &Engine) -> serde_json::Value {
    let info = engine.gpu().adapter();
    json!({
        "name": info.name,
        "driver": info.driver_info,
        "backend": info.backend.to_string(),
        "software": engine.gpu().is_software(),
        "variant": engine.variant().to_string(),
    })
}

pub(super) fn read_ids(path: &Path) -> Result<Vec<u32>, CliError> {
    let failed = |reason: String| CliError::Ids {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let ids: Vec<u32> = serde_json::from_slice(&text)
        .map_err(|error| failed(format!("expected a JSON array of token ids: {error}")))?;
    if ids.is_empty() {
        return Err(failed("expected at least one token id".into()));
    }
    Ok(ids)
}

pub(super) fn prefill(engine: &mut Engine, ids: &[u32]) -> Result<(), CliError> {
    let mut taken = 0;
    while taken < ids.len() {
        taken += pollster::block_on(engine.prefill(&ids[taken..]))?;
    }
    Ok(())
}
