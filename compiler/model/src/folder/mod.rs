//! Checkpoint folders as Hugging Face publishes them.

mod config;
mod safetensors_files;
pub(crate) mod tokenizer_files;

use std::path::Path;

use moa_format::ModelConfig;

use crate::file::{MAX_TEXT_BYTES, SourceFile, read_json};
use crate::weights::Weights;
use crate::{ModelError, Result};
use config::Fields;

/// An opened folder.
pub(crate) struct FolderModel {
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
    pub(crate) name: Option<String>,
    pub(crate) license: Option<String>,
}

/// Files besides the weights that decide what the model computes and says.
pub(crate) const SMALL_FILES: [&str; 7] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
];

pub(crate) fn open(folder: &Path) -> Result<FolderModel> {
    let config_path = folder.join("config.json");
    if !config_path.is_file() {
        return Err(ModelError::NotAModel {
            path: folder.to_owned(),
            expected: "a folder with config.json, or a .gguf file",
            found: "a folder without config.json".into(),
        });
    }
    let json = read_json(&config_path)?;
    let fields = Fields::new(&config_path, &json)?;
    let generation_path = folder.join("generation_config.json");
    let generation = if generation_path.is_file() {
        Some(read_json(&generation_path)?)
    } else {
        None
    };
    let generation = match &generation {
        Some(json) => Some(Fields::new(&generation_path, json)?),
        None => None,
    };
    let config = config::read(fields, generation)?;
    let weights = safetensors_files::locate(folder, &config)?;
    let name = fields
        .get("_name_or_path")
        .and_then(serde_json::Value::as_str)
        .filter(|name| !name.is_empty());
    Ok(FolderModel {
        config,
        weights,
        name: name.map(ToOwned::to_owned),
        license: license(folder)?,
    })
}

/// `license:` in the front matter of the folder's README.md.
fn license(folder: &Path) -> Result<Option<String>> {
    const FRONT_BYTES: u64 = 1 << 16;
    let path = folder.join("README.md");
    if !path.is_file() {
        return Ok(None);
    }
    let file = SourceFile::open(&path)?;
    let bytes = file.read(0, usize::try_from(file.len().min(FRONT_BYTES)).unwrap_or(0))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Ok(None);
    }
    let front = lines.take_while(|line| line.trim_end() != "---");
    let mut licenses = front.filter_map(|line| line.strip_prefix("license:"));
    Ok(licenses
        .next()
        .map(|text| text.trim().trim_matches(['"', '\'']).to_owned())
        .filter(|text| !text.is_empty()))
}

/// The small files that are there, with their bytes.
pub(crate) fn small_files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in SMALL_FILES {
        let path = folder.join(name);
        if path.is_file() {
            let file = SourceFile::open(&path)?;
            if file.len() > MAX_TEXT_BYTES {
                return Err(ModelError::TooLarge {
                    path,
                    got: file.len(),
                    limit: MAX_TEXT_BYTES,
                });
            }
            files.push((
                name.to_owned(),
                file.read(0, usize::try_from(file.len()).unwrap_or(0))?,
            ));
        }
    }
    Ok(files)
}
