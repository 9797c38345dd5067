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
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options that every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print exactly one JSON document on standard output, also on failure.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say less: no progress, errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Draw no progress bars.
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
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
pub enum DeviceChoice {
    /// A CUDA GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA GPU, or an error.
    Cuda,
}

/// How much work to put into the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    /// Minutes on a laptop: short profiles, few samples.
    Quick,
    /// Profiles up to half the context.
    Standard,
    /// Profiles up to the whole context, more samples.
    Thorough,
}

/// What `loss` curves measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LossChoice {
    /// Cross entropy of the response's tokens.
    CrossEntropy,
    /// Divergence from the dense model's own output; needs --at, it says nothing at the dense model.
    Kl,
}

/// Which influence estimator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EstimatorChoice {
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

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantChoice {
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
pub struct ProfileArgs {
    /// Calibration: a .jsonl file of {"prompt","response"}, {"messages":[..]} or {"ids":[..],"response_start":k}
    /// records, or a plain text. Default: built-in long-dependency samples.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Lengths to profile, in tokens, separated by commas. Default: by effort.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    pub lengths: Vec<u32>,
    /// Samples of each kind at each length. Default: by effort.
    #[arg(long, value_name = "COUNT")]
    pub samples: Option<usize>,
    /// How much work to put into the plan.
    #[arg(long, value_enum, default_value = "standard")]
    pub effort: Effort,
    /// First tokens that every head always sees; 0 or a multiple of the block.
    #[arg(long, default_value_t = moa_mask::DEFAULT_SINK, value_name = "TOKENS")]
    pub sink: u32,
    /// Step of spans in tokens.
    #[arg(long, default_value_t = moa_mask::DEFAULT_BLOCK, value_name = "TOKENS")]
    pub block: u32,
    /// What the curves measure.
    #[arg(long, value_enum, default_value = "cross-entropy")]
    pub loss: LossChoice,
    /// Profile the model as masked by this plan, not dense.
    #[arg(long, value_name = "PLAN")]
    pub at: Option<String>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceChoice,
}

/// Options of the programme that chooses rules.
#[derive(Debug, Clone, Args)]
pub struct SolveArgs {
    /// Largest kv_density at every constrained length: more than 0, at most 1.
    #[arg(long, default_value_t = 0.5, value_name = "FRACTION")]
    pub density: f64,
    /// Declared context length M in tokens. Default: the model's, 8192 at most.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<u32>,
    /// Which influence estimator is minimized.
    #[arg(long, value_enum, default_value = "joint-positive")]
    pub estimator: EstimatorChoice,
    /// Allow only this many distinct rules in a layer.
    #[arg(long, value_name = "K")]
    pub max_rules_per_layer: Option<usize>,
    /// Stop the solver after this many seconds and take the best plan so far.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub time_limit: f64,
}

/// `build`.
#[derive(Debug, Args)]
pub struct Build {
    /// A Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    /// The bundle's folder; written whole or not at all.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Calibration and profile.
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Solver.
    #[command(flatten)]
    pub solve: SolveArgs,
    /// How weights are stored. Default: keep for GGUF, q4 for a folder.
    #[arg(long, value_enum)]
    pub quant: Option<QuantChoice>,
    /// Bundle this plan in place of a profiled one (a JSON file of ours, the reference's, or explicit spans).
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
}

/// `profile`.
#[derive(Debug, Args)]
pub struct Profile {
    /// A Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    /// The profile: a safetensors file of curves.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Calibration and profile.
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Which estimator `curve.<N>` holds; `curve.<estimator>.<N>` holds each.
    #[arg(long, value_enum, default_value = "joint-positive")]
    pub estimator: EstimatorChoice,
    /// Also write maps of per-entry influence by blocks of this many tokens.
    #[arg(long, value_name = "TOKENS")]
    pub blocks: Option<u32>,
}

/// `solve`.
#[derive(Debug, Args)]
pub struct Solve {
    /// A profile that `profile` wrote.
    pub profile: PathBuf,
    /// The plan, as JSON; `-` for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub out: PathBuf,
    /// Solver.
    #[command(flatten)]
    pub solve: SolveArgs,
    /// Seed of the solver.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A model, a bundle, a plan or a profile.
    pub path: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub tensors: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The bundle's folder.
    pub bundle: PathBuf,
}

/// Where tokens come from.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Prompt {
    /// What the user says; rendered by the model's chat template if it has one (see --raw).
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A file with a JSON array of token ids; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub ids: Option<PathBuf>,
}

/// `generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub model: PathBuf,
    /// The prompt.
    #[command(flatten)]
    pub prompt: Prompt,
    /// Take --prompt as it is, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// A plan's name inside the bundle, or a file. Default: dense for a model, the default plan for a bundle.
    #[arg(long, value_name = "NAME|FILE")]
    pub plan: Option<String>,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 128, value_name = "COUNT")]
    pub max_tokens: usize,
    /// Declared context length. Default: prompt and --max-tokens together.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<u32>,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the k most likely tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Sample from the most likely tokens that make up this probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Drop tokens less likely than this fraction of the likeliest.
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f64,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceChoice,
}

/// `logits`.
#[derive(Debug, Args)]
pub struct Logits {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub model: PathBuf,
    /// A file with a JSON array of token ids; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub ids: PathBuf,
    /// A plan's name inside the bundle, or a file. Default: dense.
    #[arg(long, value_name = "NAME|FILE")]
    pub plan: Option<String>,
    /// Declared context length. Default: the number of ids.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<u32>,
    /// A safetensors file with one tensor `logits` [n, vocab] f32.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceChoice,
}

/// `eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub model: PathBuf,
    /// Prompt lengths in tokens, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "N,..", default_values_t = [1024, 2048])]
    pub lengths: Vec<u32>,
    /// Prompts at each length.
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    pub trials: usize,
    /// What to compare, separated by commas: `dense`, `uniform:PLAN` (one window for all heads at the plan's
    /// kv_density), or a plan's name inside the bundle or a file.
    #[arg(long, value_delimiter = ',', value_name = "METHOD,..", default_values_t = [String::from("dense")])]
    pub methods: Vec<String>,
    /// Declared context length. Default: prompt and answer together.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<u32>,
    /// Seed of the prompts.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceChoice,
}

/// `tokenize`.
#[derive(Debug, Args)]
pub struct Tokenize {
    /// A Hugging Face folder, a GGUF file or a bundle.
    pub model: PathBuf,
    /// Render each string as a user's message by the chat template first.
    #[arg(long)]
    pub chat: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
