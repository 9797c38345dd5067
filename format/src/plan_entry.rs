//! What the manifest says about a plan: its file, and what it costs at every context length worth knowing.
//!
//! The figures are written so that a page can show them before it downloads anything; a reader that opens the
//! plan computes them again and refuses a difference.

use moa_mask::density::{attention_density, kv_density};
use moa_mask::{KvBytes, ModelMasks, PREFILL_CHUNK};
use serde::{Deserialize, Serialize};

use crate::error::{FormatError, Result, ensure};
use crate::hash::{is_sha256, sha256_hex};
use crate::model::ModelConfig;
use crate::plan::{Plan, check_name};
use crate::plan_bin::MAX_PLAN_BYTES;

/// Bytes of a cached value: f16.
pub const KV_VALUE_BYTES: u64 = 2;

/// A plan, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Its name.
    pub name: String,
    /// `plan-<name>.bin`.
    pub file: String,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// [`Plan::hash`]: the same for plans that do the same.
    pub hash: String,
    /// Figures at each of [`ModelConfig::report_lengths`], ascending.
    pub at: Vec<PlanAt>,
}

/// What a plan costs at one declared context length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PlanAt {
    /// Prompt and generation together, in tokens.
    pub context: u32,
    /// Mean over KV heads of visible keys over all keys: the memory claim.
    pub kv_density: f64,
    /// Visible pairs over causal pairs: the compute claim.
    pub attention_density: f64,
    /// Exact bytes of sinks and rings, slack included.
    pub cache_bytes: u64,
    /// Exact bytes of the prefill chunk's K and V.
    pub scratch_bytes: u64,
    /// Bytes of a dense cache of this context, without slack or scratch.
    pub dense_bytes: u64,
}

impl PlanAt {
    /// The figures of `plan` at `context` tokens.
    pub fn of(plan: &Plan, config: &ModelConfig, context: u32) -> Result<Self> {
        Self::of_masks(&plan.masks(context)?, config, context)
    }

    /// The figures of masks at `context` tokens.
    pub fn of_masks(masks: &ModelMasks, config: &ModelConfig, context: u32) -> Result<Self> {
        let shape = config.kv_shape();
        let KvBytes { cache, scratch } =
            shape.kv_bytes(masks, context, PREFILL_CHUNK, KV_VALUE_BYTES)?;
        Ok(Self {
            context,
            kv_density: kv_density(masks.iter(), context),
            attention_density: attention_density(masks.iter(), context),
            cache_bytes: cache,
            scratch_bytes: scratch,
            dense_bytes: shape.dense_bytes(context, KV_VALUE_BYTES),
        })
    }

    /// Cache and scratch: what the engine allocates for K and V.
    pub const fn kv_bytes(&self) -> u64 {
        self.cache_bytes + self.scratch_bytes
    }

    /// Whether the numbers are those of `other`, ratios to 12 digits.
    fn agrees(&self, other: &Self) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12;
        let counts = |at: &Self| (at.context, at.cache_bytes, at.scratch_bytes, at.dense_bytes);
        counts(self) == counts(other)
            && close(self.kv_density, other.kv_density)
            && close(self.attention_density, other.attention_density)
    }
}

/// Name of a plan's file.
pub fn plan_file(name: &str) -> String {
    format!("plan-{name}.bin")
}

/// The manifest's entry of a plan, and the bytes of its file.
pub fn plan_entry(plan: &Plan, config: &ModelConfig) -> Result<(PlanEntry, Vec<u8>)> {
    config.check()?;
    plan.check_model(config)?;
    let bytes = plan.to_bin()?;
    let at = config
        .report_lengths()
        .into_iter()
        .map(|context| PlanAt::of(plan, config, context))
        .collect::<Result<_>>()?;
    let entry = PlanEntry {
        name: plan.name.clone(),
        file: plan_file(&plan.name),
        bytes: bytes.len() as u64,
        sha256: sha256_hex(&bytes),
        hash: plan.hash(),
        at,
    };
    Ok((entry, bytes))
}

impl PlanEntry {
    /// The figures at `context` tokens, if it is one of the lengths on record.
    pub fn at(&self, context: u32) -> Option<&PlanAt> {
        self.at.iter().find(|at| at.context == context)
    }

    /// Checks what can be checked without the plan itself.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        check_name(&self.name)?;
        let name = &self.name;
        ensure(
            self.file == plan_file(name),
            format!("file of plan {name}"),
            format!("{:?}", self.file),
            plan_file(name),
        )?;
        ensure(
            (1..=MAX_PLAN_BYTES as u64).contains(&self.bytes),
            format!("bytes of plan {name}"),
            self.bytes,
            format!("1 to {MAX_PLAN_BYTES}"),
        )?;
        for (what, digest) in [("checksum", &self.sha256), ("hash", &self.hash)] {
            ensure(
                is_sha256(digest),
                format!("{what} of plan {name}"),
                format!("{digest:?}"),
                "64 lower-case hex digits",
            )?;
        }
        let lengths = config.report_lengths();
        ensure(
            self.at.iter().map(|at| at.context).eq(lengths.clone()),
            format!("context lengths of plan {name}"),
            format!(
                "{:?}",
                self.at.iter().map(|at| at.context).collect::<Vec<_>>()
            ),
            format!("{lengths:?}"),
        )?;
        for at in &self.at {
            let context = at.context;
            for (what, density) in [
                ("kv_density", at.kv_density),
                ("attention_density", at.attention_density),
            ] {
                ensure(
                    density > 0.0 && density <= 1.0,
                    format!("{what} of plan {name} at {context}"),
                    density,
                    "above 0, at most 1",
                )?;
            }
            let dense = config.kv_shape().dense_bytes(context, KV_VALUE_BYTES);
            ensure(
                at.dense_bytes == dense,
                format!("dense_bytes of plan {name} at {context}"),
                at.dense_bytes,
                dense.to_string(),
            )?;
            // Slots never exceed the context, and neither does a chunk.
            ensure(
                at.cache_bytes <= dense && at.scratch_bytes <= dense,
                format!("KV bytes of plan {name} at {context}"),
                at.cache_bytes.max(at.scratch_bytes),
                format!("at most {dense}"),
            )?;
        }
        Ok(())
    }

    /// Decodes the plan's file and checks it against this entry and the model.
    pub fn open(&self, config: &ModelConfig, bytes: &[u8]) -> Result<Plan> {
        if bytes.len() as u64 != self.bytes {
            return Err(FormatError::size(
                self.file.clone(),
                bytes.len() as u64,
                self.bytes,
            ));
        }
        let got = sha256_hex(bytes);
        if got != self.sha256 {
            return Err(FormatError::Damaged {
                what: self.file.clone(),
                got,
                expected: self.sha256.clone(),
            });
        }
        let plan = Plan::from_bin(bytes)?;
        plan.check_model(config)?;
        ensure(
            plan.name == self.name,
            format!("name inside {}", self.file),
            &plan.name,
            self.name.clone(),
        )?;
        ensure(
            plan.hash() == self.hash,
            format!("hash of plan {}", self.name),
            plan.hash(),
            self.hash.clone(),
        )?;
        for at in &self.at {
            let computed = PlanAt::of(&plan, config, at.context)?;
            ensure(
                at.agrees(&computed),
                format!("record of plan {} at {}", self.name, at.context),
                format!("{at:?}"),
                format!("{computed:?}"),
            )?;
        }
        Ok(plan)
    }
}
