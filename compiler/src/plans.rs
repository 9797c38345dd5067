//! What `--plan` may name: `dense`, a plan inside the bundle, or a file.

use std::path::Path;

use anyhow::Context as _;
use moa_format::{ImportOptions, ModelConfig, Plan};
use moa_mask::{HeadRule, MaskGrid, ModelMasks};

use crate::files::read_bounded;
use crate::hint::Told;
use crate::source::Source;

/// The name that always means: every head sees everything.
pub(crate) const DENSE: &str = "dense";
/// No plan file of a real model comes near this.
const PLAN_FILE_LIMIT: u64 = 64 << 20;

/// A plan, or `None` for dense.
pub(crate) fn resolve(source: &Source, wanted: Option<&str>) -> anyhow::Result<Option<Plan>> {
    let Some(wanted) = wanted else {
        return source.default_plan();
    };
    if wanted == DENSE {
        return Ok(None);
    }
    if let Some(plan) = source.plan(wanted)? {
        return Ok(Some(plan));
    }
    let path = Path::new(wanted);
    if !path.exists() {
        let known = source.plan_names().join(", ");
        let hint = if known.is_empty() {
            format!("pass a plan file, or `{DENSE}`")
        } else {
            format!("pass a plan file, `{DENSE}`, or a plan of the bundle: {known}")
        };
        return Err(Told::new(format!("there is no plan `{wanted}`"), hint).into());
    }
    read(path, source.config()).map(Some)
}

/// Reads a plan file: ours, the reference's two keys, or explicit spans.
pub(crate) fn read(path: &Path, config: &ModelConfig) -> anyhow::Result<Plan> {
    let bytes = read_bounded(path, PLAN_FILE_LIMIT)?;
    let text = String::from_utf8(bytes).map_err(|_bytes| {
        Told::new(
            format!("{} is not text", path.display()),
            "a plan file is JSON",
        )
    })?;
    let name: String = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') {
                c
            } else {
                '-'
            }
        })
        .take(moa_format::MAX_NAME)
        .collect();
    let name = if name.is_empty() { "imported" } else { &name };
    let plan = Plan::import(&text, ImportOptions::new(name, config))
        .with_context(|| format!("{} is no plan for this model", path.display()))?;
    plan.check_model(config)
        .with_context(|| format!("{} is no plan for this model", path.display()))?;
    Ok(plan)
}

/// The masks of a plan, or of the dense model, at a declared context length.
pub(crate) fn masks(
    plan: Option<&Plan>,
    config: &ModelConfig,
    context: u32,
) -> anyhow::Result<ModelMasks> {
    match plan {
        Some(plan) => Ok(plan.masks(context)?),
        None => Ok(ModelMasks::dense(
            config.layers as usize,
            config.kv_heads as usize,
        )),
    }
}

/// The masks of rules in the order of the heads, layer by layer, at a declared context length.
pub(crate) fn masks_of(
    rules: &[HeadRule],
    kv_heads: usize,
    context: u32,
    grid: MaskGrid,
) -> anyhow::Result<ModelMasks> {
    let layers: Vec<Vec<HeadRule>> = rules.chunks(kv_heads).map(<[HeadRule]>::to_vec).collect();
    Ok(ModelMasks::from_rules(&layers, context, grid)?)
}

/// The grid of `--sink` and `--block`.
pub(crate) fn grid(sink: u32, block: u32) -> anyhow::Result<MaskGrid> {
    MaskGrid::new(sink, block).map_err(|error| {
        anyhow::Error::new(error).context(Told::new(
            "--sink and --block do not fit together",
            "use for example --sink 64 --block 64",
        ))
    })
}
