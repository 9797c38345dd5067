//! What a page is made of: any number of files, each recognized by what it holds.

use std::path::Path;

use anyhow::Context as _;
use moa_format::{Family, ImportOptions, MANIFEST_FILE, ModelConfig, Plan, PlanAt, RopeConfig};
use serde::Deserialize;
use serde_json::Value;

use crate::bundle::Bundle;
use crate::evaluate::{Row, Summary};
use crate::files::read_bounded;
use crate::hint::Told;
use crate::profile::Curves;
use crate::search::{Ranked, Step};

const FILE_LIMIT: u64 = 4 << 30;
const KNOWN: &str = "pass plans (JSON), bundles, profiles, what `eval`, `search`, `build` or `study` print with --json, or the JSON lines of --trials-out and --trace";

/// Bytes of one method at one context.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Memory {
    pub(crate) method: String,
    pub(crate) context: u32,
    pub(crate) kv_bytes: u64,
    pub(crate) dense_bytes: u64,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) plans: Vec<Plan>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) curves: Vec<(String, Curves)>,
    pub(crate) summaries: Vec<(String, Summary)>,
    pub(crate) steps: Vec<(String, Vec<Step>)>,
    pub(crate) ranked: Vec<(String, Vec<Ranked>)>,
    /// Name of the model, where a file says it.
    pub(crate) model: Option<String>,
}

impl Inputs {
    /// Reads files and folders.
    pub(crate) fn read(paths: &[impl AsRef<Path>]) -> anyhow::Result<Self> {
        let mut inputs = Self::default();
        for path in paths {
            let path = path.as_ref();
            inputs
                .add(path)
                .with_context(|| Told::new(format!("cannot show {}", path.display()), KNOWN))?;
        }
        Ok(inputs)
    }

    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let name = path.file_name().map_or_else(
            || "input".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        if path.join(MANIFEST_FILE).is_file() {
            return self.add_bundle(&Bundle::open(path)?);
        }
        let bytes = read_bounded(path, FILE_LIMIT)?;
        let extension = path
            .extension()
            .map(|text| text.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("safetensors") => self.curves.push((name, Curves::from_bytes(&bytes)?)),
            Some("jsonl") => self.add_lines(name, &bytes)?,
            _ => self.add_document(name, &bytes)?,
        }
        Ok(())
    }

    fn add_bundle(&mut self, bundle: &Bundle) -> anyhow::Result<()> {
        self.model
            .get_or_insert_with(|| bundle.manifest().name.clone());
        for entry in &bundle.manifest().plans {
            if let Some(plan) = bundle.plan(&entry.name)? {
                self.plans.push(plan);
            }
            let at = |at: &PlanAt| Memory {
                method: entry.name.clone(),
                context: at.context,
                kv_bytes: at.cache_bytes + at.scratch_bytes,
                dense_bytes: at.dense_bytes,
            };
            self.memory.extend(entry.at.iter().map(at));
        }
        Ok(())
    }

    fn add_lines(&mut self, name: String, bytes: &[u8]) -> anyhow::Result<()> {
        let mut rows: Vec<Row> = Vec::new();
        let mut steps: Vec<Step> = Vec::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let value: Value = serde_json::from_slice(line)
                .with_context(|| format!("line {} is no JSON", number + 1))?;
            let place = || format!("line {}", number + 1);
            if value.get("choice").is_some() {
                steps.push(serde_json::from_value(value).with_context(place)?);
            } else {
                rows.push(serde_json::from_value(value).with_context(place)?);
            }
        }
        if !steps.is_empty() {
            self.steps.push((name.clone(), steps));
        }
        if !rows.is_empty() {
            let mut methods: Vec<String> = Vec::new();
            for row in &rows {
                if !methods.contains(&row.method) {
                    methods.push(row.method.clone());
                }
            }
            let seed = rows[0].seed;
            self.summaries
                .push((name, Summary::of(&rows, &methods, seed)));
        }
        Ok(())
    }

    fn add_document(&mut self, name: String, bytes: &[u8]) -> anyhow::Result<()> {
        let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
            return self.add_lines(name, bytes);
        };
        let has = |key: &str| value.get(key).is_some();
        if has("rules") {
            let plan = Plan::from_json(bytes)?;
            if let Some(model) = &plan.provenance.base_model {
                self.model.get_or_insert_with(|| model.clone());
            }
            self.plans.push(plan);
        } else if let Some(rows) = ["spans", "alphas"].iter().find_map(|key| value.get(*key)) {
            let stem = name.strip_suffix(".json").unwrap_or(&name);
            let config = shape_of(rows);
            let plan = Plan::import(bytes, ImportOptions::new(stem, &config))?;
            self.plans.push(plan);
        } else if has("cells") {
            if let Some(Value::Array(methods)) = value.get("methods") {
                let memory = methods.iter().cloned();
                let memory = memory.filter_map(|one| serde_json::from_value::<Memory>(one).ok());
                self.memory.extend(memory);
            }
            self.summaries.push((name, serde_json::from_value(value)?));
        } else if has("ranked") {
            let ranked = value.get("ranked").cloned().unwrap_or_default();
            self.ranked.push((name, serde_json::from_value(ranked)?));
        } else if let Some(Value::Array(plans)) = value.get("plans") {
            for plan in plans {
                let steps = plan.get("steps").cloned().unwrap_or_default();
                let steps: Vec<Step> = serde_json::from_value(steps)?;
                if !steps.is_empty() {
                    let of = plan
                        .get("plan_name")
                        .and_then(Value::as_str)
                        .unwrap_or(&name);
                    self.steps.push((of.to_owned(), steps));
                }
            }
        } else {
            anyhow::bail!("it is none of what `report` knows");
        }
        Ok(())
    }
}

/// A model of the shape of a plan's rows `[layer][head]`, every head with keys of its own: pictures need no other.
fn shape_of(rows: &Value) -> ModelConfig {
    let count = |value: Option<&Value>| {
        let list = value.and_then(Value::as_array);
        list.map_or(0, |list| u32::try_from(list.len()).unwrap_or(u32::MAX))
    };
    let heads = count(rows.get(0));
    ModelConfig {
        family: Family::Llama,
        layers: count(Some(rows)),
        hidden_dim: heads,
        ffn_dim: 1,
        heads,
        kv_heads: heads,
        head_dim: 2,
        vocab_size: 1,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 1e4,
            scaling: None,
        },
        tied_embeddings: true,
        qkv_bias: false,
        max_context: 8192,
        bos: None,
        eos: Vec::new(),
    }
}
