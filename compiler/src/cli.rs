//! What a user may type. Doc comments here are the help texts; commands never see clap.

mod finding;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use finding::{
    Effort, EstimatorChoice, LossChoice, ProfileArgs, Scale, SearchArgs, SearchChoice, SolveArgs,
    TargetChoice,
};

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
    /// Find a plan by steps or on a front, measuring plans on held-out samples.
    Search(Search),
    /// Measure random plans, and how well each estimator predicted their order.
    Study(Study),
    /// Show plans, profiles and results as one HTML page.
    Report(Report),
    /// Show what a model, bundle, plan or profile holds.
    Inspect(Inspect),
    /// Check every byte and every number of a bundle.
    Verify(Verify),
    /// Generate text from a model or a bundle.
    Generate(Generate),
    /// Write the logits of every position of a list of token ids.
    Logits(Logits),
    /// Compare plans on retrieval, text and understanding, on the same prompts.
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
    /// How the plan is searched for. Default: in steps on a GPU, one-shot on the CPU and for --effort quick.
    #[arg(long = "search", value_enum)]
    pub(crate) how: Option<SearchChoice>,
    /// Search.
    #[command(flatten)]
    pub(crate) search: SearchArgs,
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
    #[arg(long, value_enum, default_value = "joint-square")]
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

/// `search`.
#[derive(Debug, Args)]
pub(crate) struct Search {
    /// A Hugging Face folder or a GGUF file.
    pub(crate) model: PathBuf,
    /// The plan, as JSON; with several densities a folder with a plan for each. Finished work waits beside it until the
    /// search is done.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Calibration and profile.
    #[command(flatten)]
    pub(crate) profile: ProfileArgs,
    /// Solver.
    #[command(flatten)]
    pub(crate) solve: SolveArgs,
    /// How the plan is searched for.
    #[arg(long = "search", value_enum, default_value = "steps")]
    pub(crate) how: SearchChoice,
    /// Search.
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Keep the folder of finished work, so that a search with other options can use it.
    #[arg(long)]
    pub(crate) keep_work: bool,
}

/// `study`.
#[derive(Debug, Args)]
pub(crate) struct Study {
    /// A Hugging Face folder or a GGUF file.
    pub(crate) model: PathBuf,
    /// A profile that `profile` wrote for this model.
    pub(crate) curves: PathBuf,
    /// kv_density of the random plans.
    #[arg(long, default_value_t = 0.5, value_name = "FRACTION")]
    pub(crate) density: f64,
    /// Random plans.
    #[arg(long, default_value_t = 60, value_name = "COUNT")]
    pub(crate) plans: usize,
    /// Calibration that plans are measured on, as for `profile`.
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Samples of each kind at each profiled length that plans are measured on; none of the profile's.
    #[arg(long, default_value_t = 2, value_name = "COUNT")]
    pub(crate) samples: usize,
    /// Write a JSON line for every plan. Single measurements wait in a hidden file beside it, so that an interrupted
    /// study goes on.
    #[arg(long, value_name = "FILE")]
    pub(crate) trials_out: Option<PathBuf>,
    /// Seed of plans and samples.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceChoice,
}

/// `report`.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// What to show, in any number: plans, bundles, profiles, JSON of `eval` or `search`, traces.
    #[arg(required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// The page: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Also write every figure as an SVG file into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) figures: Option<PathBuf>,
    /// Title of the page.
    #[arg(long, value_name = "TEXT")]
    pub(crate) title: Option<String>,
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
    /// What to measure, separated by commas: passkey, needle, multikey, twohop, lines, perplexity, kl, agreement,
    /// and longbench:FILE for records in `LongBench`'s form.
    #[arg(long, value_delimiter = ',', value_name = "SUITE,..", default_values_t = [String::from("passkey")])]
    pub(crate) suites: Vec<String>,
    /// Prompt lengths in tokens, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "N,..", default_values_t = [1024, 2048])]
    pub(crate) lengths: Vec<u32>,
    /// Prompts at each length; the same for every method.
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    pub(crate) trials: usize,
    /// What to compare, separated by commas.
    ///
    /// `dense`; `dense-kv8` (8-bit keys and values, simulated); a plan: its name inside the bundle or a file, also as
    /// `moa:PLAN`; `uniform[:BUDGET]` (one window for all heads); `binary:BUDGET:PROFILE` (all or nothing by our own
    /// influence); `duo:DIR[:SPARSITY]` (a `DuoAttention` pattern folder); any of them with `+kv8` behind it. A budget is a kv_density or a plan; without
    /// one it is that of the first plan in the list.
    #[arg(long, value_delimiter = ',', value_name = "METHOD,..", default_values_t = [String::from("dense")])]
    pub(crate) methods: Vec<String>,
    /// The text of perplexity, kl and agreement, and the haystack of retrieval: a text file, or a JSON array of token
    /// ids. Default: built-in essays that calibration never saw.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Declared context length. Default: prompt and answer together.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<u32>,
    /// Seed of the prompts.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Write a JSON line for every trial as it comes; rows that the file has already are not computed again.
    #[arg(long, value_name = "FILE")]
    pub(crate) trials_out: Option<PathBuf>,
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
