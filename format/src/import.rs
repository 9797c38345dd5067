//! Plans of other programs: the `MoA` reference's two-key JSON, and explicit spans.
//!
//! An import never guesses a shape: what does not fit the model is refused with both numbers.

use moa_mask::{HeadRule, MaskGrid};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{FormatError, Result};
use crate::model::ModelConfig;
use crate::plan::{Plan, Provenance, json_error};

/// What an import needs beside the file.
#[derive(Debug, Clone, Copy)]
pub struct ImportOptions<'a> {
    /// Name of a plan whose file has none.
    pub name: &'a str,
    /// The model that the plan is for.
    pub config: &'a ModelConfig,
    /// Length in tokens at which the widest query head of a KV group is found.
    pub longest: u32,
    /// Grid of a plan whose file has none; the reference's is 64 and 64.
    pub grid: MaskGrid,
}

impl<'a> ImportOptions<'a> {
    /// Default grid, and the model's own context as the longest length.
    pub fn new(name: &'a str, config: &'a ModelConfig) -> Self {
        Self {
            name,
            config,
            longest: config.max_context,
            grid: MaskGrid::default(),
        }
    }
}

#[derive(Deserialize)]
struct ReferenceJson {
    alphas: Vec<Vec<f64>>,
    betas: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct SpansJson {
    sink: u32,
    block: Option<u32>,
    spans: Vec<Vec<u32>>,
}

impl Plan {
    /// Reads a plan in any known form and checks it against the model:
    ///
    /// - our own JSON;
    /// - the reference's `{"alphas": [layer][head], "betas": [layer][head]}`, by KV heads or by query heads; of
    ///   query heads that share a KV head, the one with the largest span at the longest length decides;
    /// - `{"sink": 64, "spans": [layer][kv_head]}`: spans exactly as written, with `block` 1 unless given.
    pub fn import(json: impl AsRef<[u8]>, options: ImportOptions<'_>) -> Result<Self> {
        let value: Value = serde_json::from_slice(json.as_ref()).map_err(json_error)?;
        let has = |key| value.get(key).is_some();
        let plan = if has("rules") {
            Self::from_value(value)?
        } else if has("alphas") && has("betas") {
            from_reference(value, options)?
        } else if has("spans") && has("sink") {
            from_spans(value, options)?
        } else if has("version") {
            Self::from_value(value)?
        } else {
            return Err(FormatError::UnknownPlan);
        };
        plan.check_model(options.config)?;
        Ok(plan)
    }
}

fn from_reference(value: Value, options: ImportOptions<'_>) -> Result<Plan> {
    let ReferenceJson { alphas, betas } = serde_json::from_value(value).map_err(json_error)?;
    let layers = options.config.layers;
    for (what, got) in [
        ("layers in alphas", alphas.len()),
        ("layers in betas", betas.len()),
    ] {
        if got != layers as usize {
            return Err(shape(what, got, layers));
        }
    }
    let rows = alphas.iter().zip(&betas).enumerate();
    let rules = rows
        .map(|(layer, (alphas, betas))| reference_layer(layer, alphas, betas, options))
        .collect::<Result<_>>()?;
    Ok(imported(options, options.grid, rules, "MoA reference"))
}

fn reference_layer(
    layer: usize,
    alphas: &[f64],
    betas: &[f64],
    options: ImportOptions<'_>,
) -> Result<Vec<HeadRule>> {
    let (heads, kv_heads) = (options.config.heads, options.config.kv_heads);
    for (what, list) in [("alphas", alphas), ("betas", betas)] {
        if list.len() != heads as usize && list.len() != kv_heads as usize {
            let expected = if heads == kv_heads {
                format!("{heads} heads")
            } else {
                format!("{heads} query heads and {kv_heads} kv_heads")
            };
            return Err(shape(
                format!("heads in {what} of layer {layer}"),
                list.len(),
                expected,
            ));
        }
    }
    if alphas.len() != betas.len() {
        return Err(FormatError::invalid(
            format!("number of betas in layer {layer}"),
            betas.len(),
            format!("{} as of alphas", alphas.len()),
        ));
    }
    let mut rules = Vec::with_capacity(alphas.len());
    for (head, (&alpha, &beta)) in alphas.iter().zip(betas).enumerate() {
        let rule = HeadRule::Elastic { alpha, beta };
        rule.check(options.grid)
            .map_err(|source| FormatError::Mask {
                place: format!("layer {layer} head {head}"),
                source,
            })?;
        rules.push(rule);
    }
    if rules.len() == kv_heads as usize {
        return Ok(rules);
    }
    // Query head h reads KV head h / gqa_group. The first of equals decides.
    let span = |rule: &HeadRule| rule.span(options.longest, options.grid);
    let widest = |group: &[HeadRule]| {
        let mut widest = HeadRule::Elastic {
            alpha: 0.0,
            beta: 0.0,
        };
        let mut best = 0;
        for rule in group {
            if span(rule) > best {
                best = span(rule);
                widest = *rule;
            }
        }
        widest
    };
    Ok(rules
        .chunks(options.config.gqa_group() as usize)
        .map(widest)
        .collect())
}

fn from_spans(value: Value, options: ImportOptions<'_>) -> Result<Plan> {
    let SpansJson { sink, block, spans } = serde_json::from_value(value).map_err(json_error)?;
    let grid = MaskGrid::new(sink, block.unwrap_or(1))?;
    let exact = |row: Vec<u32>| {
        row.into_iter()
            .map(|span| HeadRule::Exact { span })
            .collect()
    };
    let rules = spans.into_iter().map(exact).collect();
    Ok(imported(options, grid, rules, "explicit spans"))
}

fn imported(
    options: ImportOptions<'_>,
    grid: MaskGrid,
    rules: Vec<Vec<HeadRule>>,
    from: &str,
) -> Plan {
    let mut provenance = Provenance::default();
    provenance
        .notes
        .insert("imported_from".into(), from.to_owned());
    Plan {
        name: options.name.to_owned(),
        sink: grid.sink(),
        block: grid.block(),
        rules,
        provenance,
    }
}

fn shape(what: impl Into<String>, got: usize, expected: impl ToString) -> FormatError {
    FormatError::PlanShape {
        what: what.into(),
        got,
        expected: expected.to_string(),
    }
}
