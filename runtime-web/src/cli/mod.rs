//! Arguments, commands and exit codes of `moa-run`.

mod bench;
mod perplexity;
mod random;
mod run;
mod shapes;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use moa_mask::KvFormat;
use moa_runtime_web::bundle::BundleError;
use moa_runtime_web::{EngineError, Variant, VariantError};

/// Runs a compiled bundle on this machine's GPU.
#[derive(Debug, Parser)]
#[command(name = "moa-run", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate tokens after a list of token ids.
    Generate(run::GenerateArgs),
    /// Measure prefill and decode.
    Bench(bench::BenchArgs),
    /// Measure what a variant of the kernels costs in quality, beside the base.
    Perplexity(perplexity::PerplexityArgs),
    /// Write a bundle of random weights, to bench what loads it.
    Random(random::RandomArgs),
}

/// What commands need to make an engine.
#[derive(Debug, Args)]
struct EngineArgs {
    /// A plan of the bundle by its name, `dense`, or a plan file; the bundle's default when absent.
    #[arg(long, value_name = "NAME|FILE")]
    plan: Option<String>,
    /// Declared context length in tokens; what the run needs when absent.
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Tokens of a prefill chunk at most.
    #[arg(long, value_name = "TOKENS")]
    prefill_chunk: Option<u32>,
    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,
    /// Ask for nothing beyond WebGPU's default limits and features.
    #[arg(long)]
    default_limits: bool,
    /// What kernels use beyond WebGPU's defaults: base for nothing; subgroups, f16 or dp4a (prefill), packed (decode), some
    /// of them joined by +; or auto for what is quickest here.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    variant: ChosenVariant,
    /// One JSON document on stdout instead of lines.
    #[arg(long)]
    json: bool,
}

/// The choices of `--variant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChosenVariant {
    /// The quickest.
    Auto,
    /// This one.
    Given(Variant),
}

impl std::str::FromStr for ChosenVariant {
    type Err = VariantError;

    fn from_str(text: &str) -> Result<Self, VariantError> {
        match text {
            "auto" => Ok(Self::Auto),
            name => name.parse().map(Self::Given),
        }
    }
}

/// The choices of `--kv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kv {
    /// 16 bits a value.
    F16,
    /// A byte a value, and a scale for each token and head: half the memory, rounded more coarsely.
    Int8,
}

impl From<Kv> for KvFormat {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => Self::Sixteen,
            Kv::Int8 => Self::Int8,
        }
    }
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{}: {reason}", path.display())]
    Ids { path: PathBuf, reason: String },
    #[error("decoded and prefilled logits differ by {error} of the largest")]
    Check { error: f32 },
    #[error("the variant is the base itself: name another with --variant (none is quicker here)")]
    NothingToCompare,
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn engine(&self) -> Option<&EngineError> {
        match self {
            Self::Engine(error) | Self::Bundle(BundleError::Engine(error)) => Some(error),
            _ => None,
        }
    }

    fn exit_code(&self) -> u8 {
        if matches!(self, Self::Check { .. }) {
            return 2;
        }
        match self.engine().map(EngineError::code) {
            Some("webgpu-unavailable" | "device-lost" | "internal" | "out-of-memory") => 2,
            _ => 1,
        }
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, the rest are the user's errors; printing them may fail in silence.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(1)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let (result, json) = match cli.command {
        Command::Generate(args) => (run::generate(&args), args.engine.json),
        Command::Bench(args) => (bench::bench(&args), args.engine.json),
        Command::Perplexity(args) => (perplexity::perplexity(&args), args.engine.json),
        Command::Random(args) => (random::random(&args), args.json),
    };
    let document = match result {
        Ok(document) => document,
        Err(error) => return report(&error, json),
    };
    match print(&document) {
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => report(&error, false),
        Ok(()) => ExitCode::SUCCESS,
    }
}

fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

fn report(error: &CliError, json: bool) -> ExitCode {
    let hint = error.engine().and_then(EngineError::hint);
    if json {
        let code = error.engine().map_or("bad-input", EngineError::code);
        let document = serde_json::json!({ "error": { "code": code, "message": error.to_string(), "hint": hint } });
        let _ = print(&document.to_string());
    }
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "error: {error}");
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
    ExitCode::from(error.exit_code())
}
