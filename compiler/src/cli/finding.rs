//! Options of finding a plan, which several commands share: calibration and profile, programme, search.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::DeviceChoice;

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

/// Which tokens of a sample carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetChoice {
    /// The response, or the second half of a plain text.
    Answers,
    /// Every token after the first.
    All,
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

/// In which units curves are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scale {
    /// Nats a token: the mean over tasks plus the mean over plain texts, and over lengths.
    Nats,
    /// Shares of a curve's own sum over all heads and rules.
    Shares,
}

/// Options of the calibration and the profile.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProfileArgs {
    /// Calibration: a .jsonl file of records, or a plain text. Default: built-in long-dependency samples.
    ///
    /// Records: `{"prompt","response"}`, `{"messages":[..]}` or `{"ids":[..],"response_start":k}`.
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// A plain text whose windows calibrate language modeling, in place of the built-in prose.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Divide logits by this before the loss of answers: above 1, heads that make a right answer certain are still heard.
    #[arg(long, default_value_t = 4.0, value_name = "FACTOR")]
    pub(crate) temperature: f64,
    /// Lengths to profile, in tokens, separated by commas. Default: by effort.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    pub(crate) lengths: Vec<u32>,
    /// Samples of each kind at each length. Default: by effort.
    #[arg(long, value_name = "COUNT")]
    pub(crate) samples: Option<usize>,
    /// Which tokens carry loss.
    #[arg(long, value_enum, default_value = "answers")]
    pub(crate) targets: TargetChoice,
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
    /// Largest kv_density at every constrained length: more than 0, at most 1. Several, separated by commas, put several
    /// plans into one bundle; the first is its default.
    #[arg(long, value_delimiter = ',', default_values_t = [0.5], value_name = "FRACTION,..")]
    pub(crate) density: Vec<f64>,
    /// Declared context length M in tokens. Default: the model's, 8192 at most.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<u32>,
    /// Which influence estimator is minimized.
    #[arg(long, value_enum, default_value = "joint-square")]
    pub(crate) estimator: EstimatorChoice,
    /// Make curves non-increasing in the span before they are minimized.
    #[arg(long)]
    pub(crate) monotone: bool,
    /// In which units curves are added. Default: nats for joint-square, whose curves are divergences; shares for the others.
    #[arg(long, value_enum)]
    pub(crate) scale: Option<Scale>,
    /// Weights of kinds of samples, such as prose=2,lines=0; `task` and `text` mean all of their group. Default: 1; in nats
    /// 0.25 for tasks and 4 for text.
    #[arg(long, value_delimiter = ',', value_name = "KIND=WEIGHT,..", value_parser = weight::<String>)]
    pub(crate) weights: Vec<(String, f64)>,
    /// Weights of lengths, such as 2048=1,4096=2. Default: 1.
    #[arg(long, value_delimiter = ',', value_name = "N=WEIGHT,..", value_parser = weight::<u32>)]
    pub(crate) length_weights: Vec<(u32, f64)>,
    /// Keep the predicted cost of a kind (or `task`, `text`) within this many times the least possible one.
    #[arg(long, value_name = "KIND=FACTOR", value_parser = weight::<String>)]
    pub(crate) hold: Option<(String, f64)>,
    /// No head gets a span below this many tokens.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) min_span: Option<u32>,
    /// Allow only this many distinct rules in a layer.
    #[arg(long, value_name = "K")]
    pub(crate) max_rules_per_layer: Option<usize>,
    /// Stop the solver after this many seconds and take the best plan so far.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub(crate) time_limit: f64,
}

/// Reads `name=number`; the number is finite and not negative.
fn weight<K: std::str::FromStr>(text: &str) -> Result<(K, f64), String> {
    let expected = || format!("`{text}` is no NAME=NUMBER, such as prose=2");
    let (name, number) = text.split_once('=').ok_or_else(expected)?;
    let key = name.parse().map_err(|_not_a_key| expected())?;
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok((key, number)),
        _ => Err(expected()),
    }
}

/// How a plan is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SearchChoice {
    /// One profile of the dense model, one programme.
    OneShot,
    /// Re-linearize: tighten the budget step by step and profile the model as masked so far; keep the plan that
    /// measures best on held-out samples.
    Steps,
    /// A front of one-shot plans over weights of tasks against text and of lengths; the one that measures best on
    /// held-out samples.
    Front,
}

/// Options of a search that measures plans.
#[derive(Debug, Clone, Args)]
pub(crate) struct SearchArgs {
    /// Tightening steps from the dense model to the density. Default: by effort.
    #[arg(long, value_name = "COUNT")]
    pub(crate) steps: Option<usize>,
    /// Further steps at the density, each kept only if it measures better. Default: by effort.
    #[arg(long, value_name = "COUNT")]
    pub(crate) rounds: Option<usize>,
    /// Samples of each kind at each length that a step profiles, fresh ones every time. Default: by
    /// effort.
    #[arg(long, value_name = "COUNT")]
    pub(crate) step_samples: Option<usize>,
    /// Weight of the mean cost over earlier points against the newest point's.
    #[arg(long, default_value_t = 0.5, value_name = "FRACTION")]
    pub(crate) damping: f64,
    /// Weight of the second-order term of a step's model against the first-order one, to begin with: a quarter of it after
    /// a step that measures better at once, four times after one that measures worse.
    #[arg(long, default_value_t = 4.0, value_name = "WEIGHT")]
    pub(crate) curvature: f64,
    /// Weight of text against the answers of tasks, both divergences from dense in nats a token.
    #[arg(long, default_value_t = crate::profile::TEXT_WEIGHT, value_name = "WEIGHT")]
    pub(crate) text_weight: f64,
    /// Held-out samples of each kind at each length that plans are measured on. Default: by effort.
    #[arg(long, value_name = "COUNT")]
    pub(crate) held_out: Option<usize>,
    /// Lengths at which plans are measured. Default: the profiled ones and one between each two.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    pub(crate) held_out_lengths: Vec<u32>,
    /// Write a JSON line for every plan that was measured.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}
