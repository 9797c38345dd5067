//! The weights of a checkpoint folder: one safetensors file, or several with an index.
//!
//! Headers alone are read here; the safetensors crate checks that tensors tile the data without gap or
//! overlap, and this module that the data ends where the file does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moa_format::{ModelConfig, TensorRole, TensorSpec};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::shape_text;
use crate::file::{SourceFile, read_json};
use crate::weights::{Located, Weights};
use crate::{ModelError, Result, SourceType};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// As in the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_FILES: usize = 4096;

/// A safetensors file whose header was read.
struct Opened {
    file: SourceFile,
    header: Metadata,
    /// First byte of the data.
    data: u64,
}

/// Finds every weight that the config calls for, and refuses folders with weights that would go unused.
pub(crate) fn locate(folder: &Path, config: &ModelConfig) -> Result<Weights> {
    let index = folder.join(INDEX);
    let (paths, placed) = if index.is_file() {
        read_index(folder, &index)?
    } else {
        (vec![only_file(folder)?], None)
    };
    let opened: Vec<Opened> = paths.iter().map(|path| open(path)).collect::<Result<_>>()?;

    let mut located = BTreeMap::new();
    for spec in moa_format::tensors(config) {
        let holder = match &placed {
            Some(placed) => placed.get(&spec.name).copied(),
            None => Some(0),
        };
        let found = holder.and_then(|file| {
            opened[file]
                .header
                .info(&spec.name)
                .map(|info| (file, info))
        });
        let Some((file, info)) = found else {
            return Err(ModelError::MissingTensor {
                name: spec.name.clone(),
                expected: expected_shape(&spec),
            });
        };
        let shape: Vec<u64> = info.shape.iter().map(|&dim| dim as u64).collect();
        if shape != wanted_shape(&spec) {
            return Err(ModelError::WrongShape {
                name: spec.name.clone(),
                expected: expected_shape(&spec),
                got: shape_text(&shape),
            });
        }
        let place = Located {
            file,
            offset: opened[file].data + info.data_offsets.0 as u64,
            bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
            shape: [spec.rows as usize, spec.cols as usize],
            source_type: source_type(&spec.name, info.dtype)?,
            interleaved_heads: None,
        };
        located.insert(spec.name, place);
    }
    let names: BTreeSet<String> = opened
        .iter()
        .flat_map(|file| file.header.offset_keys())
        .collect();
    if let Some(name) = names
        .into_iter()
        .find(|name| !located.contains_key(name) && !is_derived(name, config))
    {
        return Err(ModelError::ExtraTensor {
            name,
            family: super::config::family_name(config.family),
        });
    }
    Ok(Weights::new(
        opened.into_iter().map(|opened| opened.file).collect(),
        located,
    ))
}

/// Tensors that some checkpoints carry and that follow from the config or from other tensors.
fn is_derived(name: &str, config: &ModelConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.tied_embeddings && name == moa_format::LM_HEAD)
}

fn wanted_shape(spec: &TensorSpec) -> Vec<u64> {
    match spec.role {
        TensorRole::Norm | TensorRole::Bias => vec![spec.cols.into()],
        TensorRole::Embedding | TensorRole::LmHead | TensorRole::Linear => {
            vec![spec.rows.into(), spec.cols.into()]
        }
    }
}

fn expected_shape(spec: &TensorSpec) -> String {
    shape_text(&wanted_shape(spec))
}

fn source_type(name: &str, dtype: Dtype) -> Result<SourceType> {
    match dtype {
        Dtype::F32 => Ok(SourceType::F32),
        Dtype::F16 => Ok(SourceType::F16),
        Dtype::BF16 => Ok(SourceType::Bf16),
        other => Err(ModelError::unsupported(
            format!("type of tensor {name}"),
            format!("{other:?}"),
            "F32, F16, BF16",
        )),
    }
}

fn open(path: &Path) -> Result<Opened> {
    let file = SourceFile::open(path)?;
    let damaged = |problem: String| ModelError::DamagedSafetensors {
        path: path.to_owned(),
        problem,
    };
    if file.len() < 8 {
        return Err(damaged(format!(
            "it has {} bytes, expected at least the 8 of the header's length",
            file.len()
        )));
    }
    let mut prefix = [0; 8];
    prefix.copy_from_slice(&file.read(0, 8)?);
    let header_bytes = u64::from_le_bytes(prefix);
    let limit = MAX_HEADER_BYTES.min(file.len() - 8);
    if header_bytes > limit {
        return Err(damaged(format!(
            "its header claims {header_bytes} bytes, expected at most {limit}"
        )));
    }
    let text = file.read(8, usize::try_from(header_bytes).unwrap_or(0))?;
    let header: Metadata = serde_json::from_slice(&text)
        .map_err(|error| damaged(format!("its header is not readable ({error})")))?;
    let data = 8 + header_bytes;
    let (claimed, there) = (header.data_len() as u64, file.len() - data);
    if claimed != there {
        return Err(damaged(format!(
            "its tensors end at byte {claimed} of the data, expected {there}, where the file ends"
        )));
    }
    Ok(Opened { file, header, data })
}

/// The one safetensors file of a folder without index.
fn only_file(folder: &Path) -> Result<PathBuf> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(single);
    }
    let mut found = Vec::new();
    let mut others = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|source| ModelError::io(folder, source))? {
        let path = entry
            .map_err(|source| ModelError::io(folder, source))?
            .path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => found.push(path),
            Some(other @ ("bin" | "pth" | "pt" | "gguf" | "msgpack" | "h5")) => {
                others.insert(format!("*.{other}"));
            }
            _ => {}
        }
    }
    let got = match (found.len(), others.is_empty()) {
        (1, _) => return Ok(found.remove(0)),
        (0, true) => "no weights".to_owned(),
        (0, false) => format!("only {}", others.into_iter().collect::<Vec<_>>().join(", ")),
        (n, _) => format!("{n} *.safetensors and no {INDEX}"),
    };
    Err(ModelError::NotAModel {
        path: folder.to_owned(),
        expected: "model.safetensors, or several with model.safetensors.index.json",
        found: got,
    })
}

/// Files named by the index, and for each tensor the number of its file.
type Index = (Vec<PathBuf>, Option<BTreeMap<String, usize>>);

fn read_index(folder: &Path, path: &Path) -> Result<Index> {
    let json = read_json(path)?;
    let bad = |field: &str, expected: &str, got: String| ModelError::BadField {
        origin: path.to_owned(),
        field: field.to_owned(),
        expected: expected.to_owned(),
        got,
    };
    let Some(map) = json
        .get("weight_map")
        .and_then(serde_json::Value::as_object)
    else {
        return Err(bad(
            "weight_map",
            "an object of tensor names and files",
            "absent or something else".into(),
        ));
    };
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut placed = BTreeMap::new();
    for (tensor, file) in map {
        // A name with a folder in it could reach any file of the machine.
        let name = file.as_str().filter(|name| {
            name.ends_with(".safetensors")
                && !name.contains(['/', '\\', ':'])
                && !name.starts_with('.')
        });
        let Some(name) = name else {
            return Err(bad(
                &format!("weight_map[{tensor:?}]"),
                "the plain name of a .safetensors file",
                file.to_string(),
            ));
        };
        let next = numbers.len();
        placed.insert(tensor.clone(), *numbers.entry(name).or_insert(next));
    }
    if numbers.len() > MAX_FILES {
        return Err(bad(
            "weight_map",
            &format!("at most {MAX_FILES} files"),
            numbers.len().to_string(),
        ));
    }
    let mut paths = vec![PathBuf::new(); numbers.len()];
    for (name, &number) in &numbers {
        paths[number] = folder.join(name);
    }
    Ok((paths, Some(placed)))
}
