//! The manifest: what a bundle holds, checked before a single weight is fetched.
//!
//! The manifest carries its own checksum, every other file's, and enough numbers that a reader can say how
//! much memory a plan takes. Checking it does not open the files: [`Shard::check_chunk`](crate::Shard),
//! [`FileEntry::check_bytes`] and [`Manifest::open_plan`] do that, given bytes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{FormatError, Result, ensure};
use crate::hash::{is_sha256, sha256_hex};
use crate::json;
use crate::model::{ModelConfig, tensors};
use crate::plan::{Plan, Provenance, check_version};
use crate::plan_entry::PlanEntry;
use crate::shard::{Shard, TensorEntry, Weights};

/// Newest version of the manifest that this build reads, and the one it writes.
pub const SCHEMA_VERSION: u32 = 1;
/// Name of the manifest in its bundle.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Largest manifest that is read.
pub const MAX_MANIFEST_BYTES: usize = 32 << 20;

const SEAL_KEY: &str = "\"manifest_sha256\": \"";
const NO_SEAL: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Everything a bundle says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Name of the model, for people.
    pub name: String,
    /// Shape of the model.
    pub model: ModelConfig,
    /// Tokenizer and chat template; `None` in a bundle for token ids alone.
    pub tokenizer: Option<TokenizerFiles>,
    /// Name of the plan that is used where none is asked for.
    pub default_plan: String,
    /// The plans.
    pub plans: Vec<PlanEntry>,
    /// The files of weights and the tensors in them.
    pub weights: Weights,
    /// Every other file: tokenizer, model card, license.
    pub files: Vec<FileEntry>,
    /// Where the bundle came from.
    pub provenance: Provenance,
}

/// Names of the tokenizer's files, each also among [`Manifest::files`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: String,
    /// `tokenizer_config.json`, with the chat template.
    pub config: String,
}

/// A file that is read whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
struct ManifestJson {
    schema_version: u32,
    name: String,
    model: ModelConfig,
    tokenizer: Option<TokenizerFiles>,
    default_plan: String,
    plans: Vec<PlanEntry>,
    provenance: Provenance,
    files: Vec<FileEntry>,
    shards: Vec<Shard>,
    tensors: Vec<TensorEntry>,
    // Last: the seal is looked for from the end.
    manifest_sha256: String,
}

impl FileEntry {
    /// The entry of a file with these bytes.
    pub fn of(file: &str, bytes: &[u8]) -> Self {
        Self {
            file: file.to_owned(),
            bytes: bytes.len() as u64,
            sha256: sha256_hex(bytes),
        }
    }

    /// Checks the file's size and checksum.
    pub fn check_bytes(&self, bytes: &[u8]) -> Result<()> {
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
        Ok(())
    }
}

impl Manifest {
    /// Checks every count, name, offset, extent and density against the model's shape.
    pub fn check(&self) -> Result<()> {
        self.model.check()?;
        ensure(
            (1..=256).contains(&self.name.chars().count())
                && !self.name.chars().any(char::is_control),
            "name",
            format!("{:?}", self.name),
            "1 to 256 printable characters",
        )?;
        self.weights.check(&tensors(&self.model))?;
        for plan in &self.plans {
            plan.check(&self.model)?;
        }
        self.plan(&self.default_plan)?;
        for file in &self.files {
            ensure(
                is_sha256(&file.sha256),
                format!("checksum of {:?}", file.file),
                format!("{:?}", file.sha256),
                "64 lower-case hex digits",
            )?;
        }
        if let Some(TokenizerFiles { tokenizer, config }) = &self.tokenizer {
            for file in [tokenizer, config] {
                ensure(
                    self.files.iter().any(|entry| entry.file == *file),
                    "tokenizer file",
                    format!("{file:?}"),
                    "one of the listed files",
                )?;
            }
        }
        self.check_names()
    }

    /// Names become paths and URLs: nothing may leave the folder, and no two may be the same file anywhere.
    fn check_names(&self) -> Result<()> {
        let mut seen = BTreeSet::from([MANIFEST_FILE.to_owned()]);
        for name in self.file_names() {
            let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            ensure(
                (1..=128).contains(&name.len()) && name.chars().all(safe) && !name.starts_with('.'),
                "file name",
                format!("{name:?}"),
                "1 to 128 letters, digits, '.', '_' or '-', not beginning with '.'",
            )?;
            ensure(
                seen.insert(name.to_ascii_lowercase()),
                "file name",
                format!("{name:?}, twice"),
                "each name once",
            )?;
        }
        Ok(())
    }

    /// Every file of the bundle but the manifest.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        let plans = self.plans.iter().map(|plan| plan.file.as_str());
        let shards = self.weights.shards.iter().map(|shard| shard.file.as_str());
        let files = self.files.iter().map(|file| file.file.as_str());
        plans.chain(shards).chain(files)
    }

    /// Bytes of all weights: what a browser downloads, but for some kilobytes.
    pub fn weight_bytes(&self) -> u64 {
        let shards = self.weights.shards.iter();
        shards.map(|shard| u64::from(shard.bytes)).sum()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.weights
            .tensors
            .iter()
            .find(|tensor| tensor.name == name)
    }

    /// The plan of this name, or an error that lists the names.
    pub fn plan(&self, name: &str) -> Result<&PlanEntry> {
        let plan = self.plans.iter().find(|plan| plan.name == name);
        plan.ok_or_else(|| {
            let known: Vec<&str> = self.plans.iter().map(|plan| plan.name.as_str()).collect();
            FormatError::UnknownPlanName {
                got: name.to_owned(),
                known: if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                },
            }
        })
    }

    /// Decodes a plan's file and checks it against everything the manifest says of it.
    pub fn open_plan(&self, entry: &PlanEntry, bytes: &[u8]) -> Result<Plan> {
        entry.open(&self.model, bytes)
    }

    /// The manifest as JSON, sealed with its own checksum. Checks it first.
    pub fn to_json(&self) -> Result<String> {
        self.check()?;
        let document = ManifestJson {
            schema_version: SCHEMA_VERSION,
            name: self.name.clone(),
            model: self.model.clone(),
            tokenizer: self.tokenizer.clone(),
            default_plan: self.default_plan.clone(),
            plans: self.plans.clone(),
            provenance: self.provenance.clone(),
            files: self.files.clone(),
            shards: self.weights.shards.clone(),
            tensors: self.weights.tensors.clone(),
            manifest_sha256: NO_SEAL.into(),
        };
        let mut text = json::to_text("manifest", &document)?;
        let seal = sha256_hex(text.as_bytes());
        let at = seal_position(text.as_bytes())?;
        text.replace_range(at..at + NO_SEAL.len(), &seal);
        Ok(text)
    }

    /// Reads and checks a manifest. A newer version is refused, and so is any change since it was written.
    pub fn from_json(json: impl AsRef<[u8]>) -> Result<Self> {
        let json = json.as_ref();
        ensure(
            json.len() <= MAX_MANIFEST_BYTES,
            "manifest's bytes",
            json.len(),
            format!("at most {MAX_MANIFEST_BYTES}"),
        )?;
        let error = |reason| json::json_error("manifest", reason);
        let value: serde_json::Value = serde_json::from_slice(json).map_err(error)?;
        check_version("manifest", value.get("schema_version"), SCHEMA_VERSION)?;
        check_seal(json)?;
        let document: ManifestJson = serde_json::from_value(value).map_err(error)?;
        let manifest = Self {
            name: document.name,
            model: document.model,
            tokenizer: document.tokenizer,
            default_plan: document.default_plan,
            plans: document.plans,
            weights: Weights {
                shards: document.shards,
                tensors: document.tensors,
            },
            files: document.files,
            provenance: document.provenance,
        };
        manifest.check()?;
        Ok(manifest)
    }
}

/// Where the 64 digits of the seal begin.
fn seal_position(json: &[u8]) -> Result<usize> {
    let missing = || FormatError::invalid("manifest_sha256", "missing", "the last field");
    let key = SEAL_KEY.as_bytes();
    let found = json.windows(key.len()).rposition(|window| window == key);
    let at = found.ok_or_else(missing)? + key.len();
    if json.len() < at + NO_SEAL.len() {
        return Err(missing());
    }
    Ok(at)
}

/// The seal is the SHA-256 of the manifest's bytes with 64 zeros in its own place.
fn check_seal(json: &[u8]) -> Result<()> {
    let at = seal_position(json)?;
    let mut unsealed = json.to_vec();
    let expected = String::from_utf8_lossy(&json[at..at + NO_SEAL.len()]).into_owned();
    unsealed[at..at + NO_SEAL.len()].copy_from_slice(NO_SEAL.as_bytes());
    let got = sha256_hex(&unsealed);
    if got != expected {
        return Err(FormatError::Damaged {
            what: MANIFEST_FILE.into(),
            got,
            expected,
        });
    }
    Ok(())
}
