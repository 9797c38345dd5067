//! The steps that `build` and `profile` share: calibrate, profile.

use std::collections::BTreeMap;
use std::path::Path;

use moa_format::ModelConfig;
use moa_lm::LossKind;

use crate::calibrate::Sample;
use crate::calibration::{self, Wish};
use crate::cli::{EstimatorChoice, LossChoice, ProfileArgs, SolveArgs};
use crate::effort::preset;
use crate::files::FileError;
use crate::hint::Told;
use crate::interrupt;
use crate::opened::Opened;
use crate::plans;
use crate::printer::Printer;
use crate::profile::{CostSpec, Curves, ProfileSpec, Profiler, SolveSpec, check_budgets};

/// Who wrote a plan or a bundle.
pub(crate) const TOOL: &str = concat!("moa-compile ", env!("CARGO_PKG_VERSION"));
/// Context length of a bundle whose model could go further, unless asked.
pub(crate) const DEFAULT_CONTEXT: u32 = 8192;

/// The declared context length.
pub(crate) fn context(asked: Option<u32>, config: &ModelConfig) -> anyhow::Result<u32> {
    match asked {
        Some(0) => Err(Told::new(
            "--context is 0, expected at least 1",
            "use for example --context 8192",
        )
        .into()),
        Some(context) if context > config.max_context => Err(Told::new(
            format!(
                "--context is {context}, and the model was trained for {} positions",
                config.max_context
            ),
            format!("use --context {} or less", config.max_context),
        )
        .into()),
        Some(context) => Ok(context),
        None => Ok(config.max_context.min(DEFAULT_CONTEXT)),
    }
}

/// What is asked of the solver at one density.
pub(crate) fn solve_spec(args: &SolveArgs, density: f64, context: u32, seed: u64) -> SolveSpec {
    let mut cost = CostSpec::usual(args.estimator.into(), args.scale);
    cost.monotone = args.monotone;
    cost.kinds.extend(args.weights.iter().cloned());
    cost.lengths.extend(args.length_weights.iter().copied());
    SolveSpec {
        density,
        context,
        cost,
        min_span: args.min_span,
        hold: args.hold.clone(),
        max_rules_per_layer: args.max_rules_per_layer,
        time_limit_secs: args.time_limit,
        seed,
    }
}

/// Refuses a budget that no plan meets, before anything is profiled for it.
pub(crate) fn check_budget(
    args: &ProfileArgs,
    config: &ModelConfig,
    spec: &SolveSpec,
) -> anyhow::Result<()> {
    let grid = plans::grid(args.sink, args.block)?;
    let lengths = preset(args, spec.context.min(config.max_context)).lengths;
    check_budgets(&lengths, grid, spec)
}

/// What a profile gives beside joint curves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Per-entry curves.
    pub(crate) per_entry: bool,
    /// Per-entry maps by blocks of so many tokens.
    pub(crate) blocks: Option<u32>,
}

impl Wanted {
    /// What these estimators need.
    pub(crate) fn for_estimators(estimators: &[EstimatorChoice]) -> Self {
        Self {
            per_entry: estimators.contains(&EstimatorChoice::PerEntry),
            blocks: None,
        }
    }
}

/// Calibrates and profiles; finished samples wait in `work`.
pub(crate) fn profile(
    opened: &Opened,
    args: &ProfileArgs,
    context: u32,
    wanted: Wanted,
    work: &Path,
    printer: &Printer,
) -> anyhow::Result<Curves> {
    let config = opened.source.config();
    let grid = plans::grid(args.sink, args.block)?;
    let Wanted { per_entry, blocks } = wanted;
    if blocks == Some(0) {
        return Err(Told::new(
            "--blocks is 0, expected at least 1",
            "use for example --blocks 64",
        )
        .into());
    }
    let preset = preset(args, context);
    if let Some(&length) = preset
        .lengths
        .iter()
        .find(|&&length| length == 0 || length > config.max_context)
    {
        return Err(Told::new(
            format!(
                "--lengths has {length}, expected 1 to {} (the model's context)",
                config.max_context
            ),
            "choose shorter lengths",
        )
        .into());
    }
    let at = match &args.at {
        None => None,
        Some(wanted) => plans::resolve(&opened.source, Some(wanted))?,
    };
    let loss = match args.loss {
        LossChoice::CrossEntropy => LossKind::CrossEntropy,
        LossChoice::Kl if at.is_none() => {
            return Err(Told::new(
                "--loss kl has no gradient at the dense model",
                "profile a masked model with --at PLAN, or use --loss cross-entropy",
            )
            .into());
        }
        LossChoice::Kl => LossKind::KlToDense,
    };
    let wish = Wish::of(args, &preset);
    let calibration = calibration::gather(opened, &wish, printer)?;
    let spec = ProfileSpec {
        grid,
        loss,
        at,
        per_entry,
        blocks,
        temperature: args.temperature,
        source_sha256: opened.source_sha256.clone(),
    };
    let mut curves = profile_samples(opened, &calibration.samples, &spec, work, printer)?;
    describe(&mut curves, opened, args.seed, &calibration.sha256);
    let mut put = |key: &str, value: String| curves.metadata.insert(key.to_owned(), value);
    put("loss", format!("{loss:?}"));
    put("temperature", spec.temperature.to_string());
    if let Some(plan) = &spec.at {
        put("at", plan.hash());
    }
    Ok(curves)
}

/// Profiles given samples; finished ones wait in `work`.
pub(crate) fn profile_samples(
    opened: &Opened,
    samples: &BTreeMap<u32, Vec<Sample>>,
    spec: &ProfileSpec,
    work: &Path,
    printer: &Printer,
) -> anyhow::Result<Curves> {
    let profiler = Profiler {
        lm: opened.lm(printer)?,
        work,
        printer,
        cancel: interrupt::flag(),
    };
    opened
        .stages
        .time("profiling", || profiler.run(samples, spec))
}

/// What curves, and plans from them, say of where they came from.
pub(crate) fn describe(curves: &mut Curves, opened: &Opened, seed: u64, calibration_sha256: &str) {
    let mut put = |key: &str, value: String| curves.metadata.insert(key.to_owned(), value);
    put("tool", TOOL.into());
    put("seed", seed.to_string());
    put("source_sha256", opened.source_sha256.clone());
    put("calibration_sha256", calibration_sha256.to_owned());
    put("base_model", opened.name.clone());
    if let Some(license) = &opened.license {
        put("license", license.clone());
    }
}

/// Removes the work folder of a command that is done.
pub(crate) fn clean(work: &Path) -> Result<(), FileError> {
    if work.exists() {
        std::fs::remove_dir_all(work).map_err(|source| FileError::new("remove", work, source))?;
    }
    Ok(())
}
