//! What a user may type. Doc comments here are the help texts; commands never see clap.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Compile a language model for long context at bounded memory.
///
/// moa-compile finds for every KV head how far it must see, and writes a bundle that a browser runs.
#[derive(Debug, Parser)]
#[command(
    name = "moa-compile",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Options that every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Print exactly one JSON document on standard output, also on failure.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say less: no progress, errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Draw no progress bars.
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Do all of it: profile, solve, quantize, write and verify a bundle.
    Build(Build),
    /// Measure what hiding keys costs, head by head: the influence curves.
    Profile(Profile),
    /// Choose one rule per KV head from influence curves, under density budgets.
    Solve(Solve),
    /// Show what a model, bundle, plan or profile holds.
    Inspect(Inspect),
    /// Check every byte and every number of a bundle.
    Verify(Verify),
    /// Generate text from a model or a bundle.
    Generate(Generate),
    /// Write the logits of every position of a list of token ids.
    Logits(Logits),
    /// Compare plans by free generation on retrieval prompts.
    Eval(Eval),
    /// Encode a JSON array of strings from standard input; for tests of other tokenizers.
    #[command(hide = true)]
    Tokenize(Tokenize),
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// A CUDA GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA GPU, or an error.
    Cuda,
}

/// How much work to put into the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Effort {
    /// Minutes on a laptop: short profiles, few samples.
    Quick,
    /// Profiles up to half the context.
    Standard,
    /// Profiles up to the whole context, more samples.
    Thorough,
}

/// What `loss` curves measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LossChoice {
    /// Cross entropy of the response's tokens.
    CrossEntropy,
    /// Divergence from the dense model's own output; needs --at, it says nothing at the dense model.
    Kl,
}

/// Which influence estimator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EstimatorChoice {
    /// Sum of |E| over hidden entries (the paper's).
    PerEntry,
    /// Sum over rows of |joint effect|.
    JointAbs,
    /// Sum over rows of the joint effect, sign kept.
    JointSigned,
    /// Sum over rows of the positive part of the joint effect.
    JointPositive,
    /// Sum over rows of the squared joint effect.
    JointSquare,
}

impl From<EstimatorChoice> for moa_lm::Estimator {
    fn from(choice: EstimatorChoice) -> Self {
        match choice {
            EstimatorChoice::PerEntry => Self::PerEntry,
            EstimatorChoice::JointAbs => Self::JointAbs,
            EstimatorChoice::JointSigned => Self::JointSigned,
            EstimatorChoice::JointPositive => Self::JointPositive,
            EstimatorChoice::JointSquare => Self::JointSquare,
        }
    }
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuantChoice {
    /// Each tensor at no fewer bits than its source; without loss where the formats allow.
    Keep,
    /// 4 bits and groups of 32; embedding and head in 8 bits.
    Q4,
    /// 8 bits and groups of 32.
    Q8,
    /// 16-bit floats.
    F16,
}

/// Options of the calibration and the profile.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProfileArgs {
    /// Calibration: a .jsonl file of records, or a plain text. Default: built-in long-dependency samples.
    ///
    /// Records: `{"prompt","response"}`, `{"messages":[..]}` or `{"ids":[..],"response_start":k}`.
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Lengths to profile, in tokens, separated by commas. Default: by effort.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    pub(crate) lengths: Vec<u32>,
    /// Samples of each kind at each length. Default: by effort.
    #[arg(long, value_name = "COUNT")]
    pub(crate) samples: Option<usize>,
    /// How much work to put into the plan.
    #[arg(long, value_enum, default_value = "standard")]
    pub(crate) effort: Effort,
    /// First tokens that every head always sees; 0 or a multiple of the block.
    #[arg(long, default_value_t = moa_mask::DEFAULT_SINK, value_name = "TOKENS")]
    pub(crate) sink: u32,
    /// Step of spans in tokens.
    #[arg(long, default_value_t = moa_mask::DEFAULT_BLOCK, value_name = "TOKENS")]
    pub(crate) block: u32,
    /// What the curves measure.
    #[arg(long, value_enum, default_value = "cross-entropy")]
    pub(crate) loss: LossChoice,
    /// Profile the model as masked by this plan, not dense.
    #[arg(long, value_name = "PLAN")]
    pub(crate) at: Option<String>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceChoice,
}

/// Options of the programme that chooses rules.
#[derive(Debug, Clone, Args)]
pub(crate) struct SolveArgs {
    /// Largest kv_density at every constrained length: more than 0, at most 1.
    #[arg(long, default_value_t = 0.5, value_name = "FRACTION")]
    pub(crate) density: f64,
    /// Declared context length M in tokens. Default: the model's, 8192 at most.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<u32>,
    /// Which influence estimator is minimized.
    #[arg(long, value_enum, default_value = "joint-positive")]
    pub(crate) estimator: EstimatorChoice,
    /// Allow only this many distinct rules in a layer.
    #[arg(long, value_name = "K")]
    pub(crate) max_rules_per_layer: Option<usize>,
    /// Stop the solver after this many seconds and take the best plan so far.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub(crate) time_limit: f64,
}

/// `build`.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// A Hugging Face folder or a GGUF file.
    pub(crate) model: PathBuf,
    /// The bundle's folder; written whole or not at all.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// What people shall call the model. Default: what its files say, or the folder's name.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Calibration and profile.
    #[command(flatten)]
    pub(crate) profile: ProfileArgs,
    /// Solver.
    #[command(flatten)]
    pub(crate) solve: SolveArgs,
    /// How weights are stored. Default: keep for GGUF, q4 for a folder.
    #[arg(long, value_enum)]
    pub(crate) quant: Option<QuantChoice>,
    /// Bundle this plan in place of a profiled one (a JSON file of ours, the reference's, or explicit spans).
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
}

/// `profile`.
#[derive(Debug, Args)]
pub(crate) struct Profile {
    /// A Hugging Face folder or a GGUF file.
    pub(crate) model: PathBuf,
    /// The profile: a safetensors file of curves.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Calibration and profile.
    #[command(flatten)]
    pub(crate) profile: ProfileArgs,
    /// Which estimator `curve.<N>` holds; `curve.<estimator>.<N>` holds each.
    #[arg(long, value_enum, default_value = "joint-positive")]
    pub(crate) estimator: EstimatorChoice,
    /// Also write maps of per-entry influence by blocks of this many tokens.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) blocks: Option<u32>,
}

/// `solve`.
#[derive(Debug, Args)]
pub(crate) struct Solve {
    /// A profile that `profile` wrote.
    pub(crate) profile: PathBuf,
    /// The plan, as JSON; `-` for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) out: PathBuf,
    /// Solver.
    #[command(flatten)]
    pub(crate) solve: SolveArgs,
    /// Seed of the solver.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A model, a bundle, a plan or a profile.
    pub(crate) path: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The bundle's folder.
    pub(crate) bundle: PathBuf,
}

/// Where tokens come from.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Prompt {
    /// What the user says; rendered by the model's chat template if it has one (see --raw).
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// A file with a JSON array of token ids; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: Option<PathBuf>,
}

/// `generate`.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub(crate) model: PathBuf,
    /// The prompt.
    #[command(flatten)]
    pub(crate) prompt: Prompt,
    /// Take --prompt as it is, without the chat template.
    #[arg(long)]
    pub(crate) raw: bool,
    /// A plan's name inside the bundle, or a file. Default: dense for a model, the default plan for a bundle.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) plan: Option<String>,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 128, value_name = "COUNT")]
    pub(crate) max_tokens: usize,
    /// Declared context length. Default: prompt and --max-tokens together.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<u32>,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Sample from the k most likely tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: u32,
    /// Sample from the most likely tokens that make up this probability.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Drop tokens less likely than this fraction of the likeliest.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceChoice,
}

/// `logits`.
#[derive(Debug, Args)]
pub(crate) struct Logits {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub(crate) model: PathBuf,
    /// A file with a JSON array of token ids; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,
    /// A plan's name inside the bundle, or a file. Default: dense.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) plan: Option<String>,
    /// Declared context length. Default: the number of ids.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<u32>,
    /// A safetensors file with one tensor `logits` [n, vocab] f32.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceChoice,
}

/// `eval`.
#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub(crate) model: PathBuf,
    /// Prompt lengths in tokens, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "N,..", default_values_t = [1024, 2048])]
    pub(crate) lengths: Vec<u32>,
    /// Prompts at each length.
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    pub(crate) trials: usize,
    /// What to compare, separated by commas: `dense`, `uniform:PLAN` (one window for all heads at the plan's
    /// kv_density), or a plan's name inside the bundle or a file.
    #[arg(long, value_delimiter = ',', value_name = "METHOD,..", default_values_t = [String::from("dense")])]
    pub(crate) methods: Vec<String>,
    /// Declared context length. Default: prompt and answer together.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<u32>,
    /// Seed of the prompts.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceChoice,
}

/// `tokenize`.
#[derive(Debug, Args)]
pub(crate) struct Tokenize {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub(crate) model: PathBuf,
    /// Render each string as a user's message by the chat template first.
    #[arg(long)]
    pub(crate) chat: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
