//! A plan: one rule for every KV head, with the grid they share and where it came from.
//!
//! JSON is for people and for other tools; the bundle carries [`crate::plan_bin`]. A plan knows no weights:
//! it fits every model of the same number of layers and KV heads.

use std::collections::BTreeMap;

use moa_mask::{HeadRule, MaskGrid, ModelMasks};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{FormatError, Result, ensure};
use crate::hash::hex;
use crate::json;
use crate::model::ModelConfig;

/// Newest version of the plan JSON that this build reads, and the one it writes.
pub const PLAN_VERSION: u32 = 1;
/// Longest name of a plan, in characters.
pub const MAX_NAME: usize = 64;
/// Most layers, and most KV heads in a layer, that a plan may have.
pub(crate) const MAX_PLAN_DIM: usize = 1 << 14;

/// One rule for every KV head of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Name: letters, digits, `.`, `_` and `-`; the bundle's file is `plan-<name>.bin`.
    pub name: String,
    /// First keys that every head keeps, in tokens.
    pub sink: u32,
    /// Step of spans, in tokens.
    pub block: u32,
    /// The rules, `[layer][kv_head]`.
    pub rules: Vec<Vec<HeadRule>>,
    /// Where the plan came from.
    pub provenance: Provenance,
}

/// Where a plan or a bundle came from. Every field may be missing; none changes what is computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Program and version that wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Seed of everything random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Name of the model that was compiled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// License of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// SHA-256 of the source checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_sha256: Option<String>,
    /// SHA-256 of the calibration text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_sha256: Option<String>,
    /// Estimator of influence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimator: Option<String>,
    /// Profiled lengths, in tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<u32>,
    /// Bounds on `kv_density` by context length.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub budgets: BTreeMap<u32, f64>,
    /// Anything else worth keeping: solver, gap, objective.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanJson {
    version: u32,
    name: String,
    sink: u32,
    block: u32,
    #[serde(default)]
    provenance: Provenance,
    rules: Vec<Vec<RuleJson>>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RuleJson {
    Elastic(ElasticJson),
    Exact(ExactJson),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ElasticJson {
    alpha: f64,
    beta: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExactJson {
    span: u32,
}

impl Plan {
    /// The plan under which every head sees everything.
    pub fn dense(config: &ModelConfig, grid: MaskGrid) -> Self {
        let row = vec![HeadRule::DENSE; config.kv_heads as usize];
        Self {
            name: "dense".into(),
            sink: grid.sink(),
            block: grid.block(),
            rules: vec![row; config.layers as usize],
            provenance: Provenance::default(),
        }
    }

    /// Sink and block as the mask wants them.
    pub fn grid(&self) -> Result<MaskGrid> {
        MaskGrid::new(self.sink, self.block).map_err(Into::into)
    }

    /// Checks the name, the grid, that every layer has as many heads, and every rule.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        let grid = self.grid()?;
        let kv_heads = self.rules.first().map_or(0, Vec::len);
        for (what, got) in [("layers", self.rules.len()), ("kv_heads", kv_heads)] {
            ensure(
                (1..=MAX_PLAN_DIM).contains(&got),
                format!("plan's number of {what}"),
                got,
                format!("1 to {MAX_PLAN_DIM}"),
            )?;
        }
        for (layer, row) in self.rules.iter().enumerate() {
            ensure(
                row.len() == kv_heads,
                format!("number of kv_heads in layer {layer}"),
                row.len(),
                format!("{kv_heads} as in layer 0"),
            )?;
            for (kv_head, rule) in row.iter().enumerate() {
                rule.check(grid).map_err(|source| FormatError::Mask {
                    place: format!("layer {layer} kv_head {kv_head}"),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Checks the plan, and that it was made for a model of this shape.
    pub fn check_model(&self, config: &ModelConfig) -> Result<()> {
        self.check()?;
        let kv_heads = self.rules.first().map_or(0, Vec::len);
        for (what, got, expected) in [
            ("layers", self.rules.len(), config.layers),
            ("kv_heads in each layer", kv_heads, config.kv_heads),
        ] {
            if got != expected as usize {
                return Err(FormatError::PlanShape {
                    what: what.into(),
                    got,
                    expected: expected.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The mask of every KV head at a declared context length (at least 1 token).
    pub fn masks(&self, context: u32) -> Result<ModelMasks> {
        self.check()?;
        ensure(context > 0, "context length", context, "at least 1")?;
        Ok(ModelMasks::from_rules(&self.rules, context, self.grid()?)?)
    }

    /// SHA-256, in hex, of what the plan does: sink, block and rules, not name or provenance.
    pub fn hash(&self) -> String {
        let mut sha = Sha256::new();
        sha.update(b"moa-plan-1");
        sha.update(self.sink.to_le_bytes());
        sha.update(self.block.to_le_bytes());
        sha.update((self.rules.len() as u64).to_le_bytes());
        for row in &self.rules {
            sha.update((row.len() as u64).to_le_bytes());
            for rule in row {
                match *rule {
                    HeadRule::Elastic { alpha, beta } => {
                        sha.update([0]);
                        // Adding zero turns -0 into 0, which gives the same spans.
                        sha.update((alpha + 0.0).to_le_bytes());
                        sha.update((beta + 0.0).to_le_bytes());
                    }
                    HeadRule::Exact { span } => {
                        sha.update([1]);
                        sha.update(span.to_le_bytes());
                    }
                }
            }
        }
        hex(&sha.finalize())
    }

    /// The plan as JSON, one layer a line.
    pub fn to_json(&self) -> Result<String> {
        self.check()?;
        let rules = self.rules.iter();
        json::to_text(
            "plan",
            &PlanJson {
                version: PLAN_VERSION,
                name: self.name.clone(),
                sink: self.sink,
                block: self.block,
                provenance: self.provenance.clone(),
                rules: rules
                    .map(|row| row.iter().map(|&rule| rule.into()).collect())
                    .collect(),
            },
        )
    }

    /// Reads what [`Plan::to_json`] wrote. A newer version is refused.
    pub fn from_json(json: impl AsRef<[u8]>) -> Result<Self> {
        Self::from_value(serde_json::from_slice(json.as_ref()).map_err(json_error)?)
    }

    pub(crate) fn from_value(value: serde_json::Value) -> Result<Self> {
        check_version("plan", value.get("version"), PLAN_VERSION)?;
        let plan: PlanJson = serde_json::from_value(value).map_err(json_error)?;
        let rules = plan.rules.into_iter();
        let plan = Self {
            name: plan.name,
            sink: plan.sink,
            block: plan.block,
            rules: rules
                .map(|row| row.into_iter().map(Into::into).collect())
                .collect(),
            provenance: plan.provenance,
        };
        plan.check()?;
        Ok(plan)
    }
}

impl From<RuleJson> for HeadRule {
    fn from(rule: RuleJson) -> Self {
        match rule {
            RuleJson::Elastic(ElasticJson { alpha, beta }) => Self::Elastic { alpha, beta },
            RuleJson::Exact(ExactJson { span }) => Self::Exact { span },
        }
    }
}

impl From<HeadRule> for RuleJson {
    fn from(rule: HeadRule) -> Self {
        match rule {
            HeadRule::Elastic { alpha, beta } => Self::Elastic(ElasticJson { alpha, beta }),
            HeadRule::Exact { span } => Self::Exact(ExactJson { span }),
        }
    }
}

/// Refuses versions that this build does not know, the newer ones with what to do about it.
pub(crate) fn check_version(
    what: &'static str,
    version: Option<&serde_json::Value>,
    supported: u32,
) -> Result<()> {
    match version.and_then(serde_json::Value::as_u64) {
        Some(got) if got > u64::from(supported) => Err(FormatError::NewerVersion {
            what,
            got,
            supported,
        }),
        Some(1..) => Ok(()),
        _ => Err(FormatError::invalid(
            format!("{what} version"),
            version.map_or("missing".into(), ToString::to_string),
            format!("1 to {supported}"),
        )),
    }
}

/// A name becomes a part of a file's name and of a URL.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    ensure(
        (1..=MAX_NAME).contains(&name.len()) && name.chars().all(safe) && !name.starts_with('.'),
        "plan name",
        format!("{name:?}"),
        format!("1 to {MAX_NAME} letters, digits, '.', '_' or '-', not beginning with '.'"),
    )
}

pub(crate) fn json_error(reason: impl ToString) -> FormatError {
    json::json_error("plan", reason)
}
