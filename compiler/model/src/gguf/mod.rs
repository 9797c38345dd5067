//! GGUF files: one file with weights, shape, tokenizer and chat template.
//!
//! [`header`] reads and checks the header before anything else sees it, [`config`] turns metadata into a
//! model shape, and this module finds each weight under its Hugging Face name. Reading weights is not its
//! business: it says where they lie.

mod config;
mod header;
pub(crate) mod tokenizer;
pub(crate) mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use moa_format::{EMBEDDING, FINAL_NORM, Family, LM_HEAD, ModelConfig, TensorRole, TensorSpec};

use crate::error::shape_text;
use crate::file::SourceFile;
use crate::weights::{Located, Weights};
use crate::{ModelError, Result};
pub(crate) use config::{FAMILIES, family_name};
use header::{Header, TensorInfo};
use value::Metadata;

/// Divisors of the rope frequencies, which Llama 3.1 and later carry as a tensor.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// An opened GGUF file.
pub(crate) struct GgufModel {
    pub(crate) config: ModelConfig,
    pub(crate) metadata: Metadata,
    pub(crate) weights: Weights,
}

pub(crate) fn open(path: &Path) -> Result<GgufModel> {
    let file = SourceFile::open(path)?;
    let header = file.with_reader(|reader, len| Header::read(reader, path, len))?;
    let rope_freqs = match header.tensors.get(ROPE_FREQS) {
        None => None,
        Some(info) => Some(rope_divisors(&file, info)?),
    };
    let config = config::read(&header, rope_freqs)?;
    let weights = locate(file, &header.tensors, &config)?;
    Ok(GgufModel {
        config,
        metadata: header.metadata,
        weights,
    })
}

/// Finds every weight that the config calls for, and refuses files with weights that would go unused.
fn locate(
    file: SourceFile,
    tensors: &BTreeMap<String, TensorInfo>,
    config: &ModelConfig,
) -> Result<Weights> {
    let mut located = BTreeMap::new();
    let mut used = BTreeSet::from([ROPE_FREQS.to_owned()]);
    for spec in moa_format::tensors(config) {
        let name = gguf_name(&spec.name).unwrap_or_default();
        let Some(info) = tensors.get(&name) else {
            let name = format!("{} ({name})", spec.name);
            return Err(ModelError::MissingTensor {
                name,
                expected: expected_shape(&spec),
            });
        };
        if squeeze(&info.shape) != squeeze(&[spec.rows.into(), spec.cols.into()]) {
            let (expected, got) = (expected_shape(&spec), shape_text(&info.shape));
            return Err(ModelError::WrongShape {
                name,
                expected,
                got,
            });
        }
        let place = Located {
            file: 0,
            offset: info.offset,
            bytes: info.bytes,
            shape: [spec.rows as usize, spec.cols as usize],
            source_type: info.source_type,
            interleaved_heads: interleaved_heads(&spec.name, config),
        };
        used.insert(name);
        located.insert(spec.name, place);
    }
    match tensors.keys().find(|name| !used.contains(*name)) {
        Some(name) => Err(ModelError::ExtraTensor {
            name: name.clone(),
            family: family_name(config.family),
        }),
        None => Ok(Weights::new(vec![file], located)),
    }
}

fn expected_shape(spec: &TensorSpec) -> String {
    match spec.role {
        TensorRole::Norm | TensorRole::Bias => shape_text(&[spec.cols.into()]),
        TensorRole::Embedding | TensorRole::LmHead | TensorRole::Linear => {
            shape_text(&[spec.rows.into(), spec.cols.into()])
        }
    }
}

/// A shape without its leading ones, so that a vector and a matrix of one row agree.
fn squeeze(shape: &[u64]) -> &[u64] {
    let first = shape
        .iter()
        .position(|&dim| dim != 1)
        .unwrap_or(shape.len());
    &shape[first..]
}

/// Heads of a tensor whose rows the converter interleaved: Q and K of the llama architecture.
///
/// There the two halves of a head that rotate together alternate: row `2j + p` of a head in the file is row
/// `p * head_dim/2 + j` in Hugging Face's order. Other architectures keep their rows.
fn interleaved_heads(name: &str, config: &ModelConfig) -> Option<usize> {
    if config.family == Family::Qwen2 {
        return None;
    }
    if name.ends_with("self_attn.q_proj.weight") {
        Some(config.heads as usize)
    } else if name.ends_with("self_attn.k_proj.weight") {
        Some(config.kv_heads as usize)
    } else {
        None
    }
}

/// The name that GGUF files of both architectures give to a tensor.
fn gguf_name(canonical: &str) -> Option<String> {
    match canonical {
        EMBEDDING => return Some("token_embd.weight".into()),
        FINAL_NORM => return Some("output_norm.weight".into()),
        LM_HEAD => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, part) = canonical.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = part.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}

fn rope_divisors(file: &SourceFile, info: &TensorInfo) -> Result<Vec<f64>> {
    let [len] = *squeeze(&info.shape) else {
        return Err(ModelError::WrongShape {
            name: ROPE_FREQS.into(),
            expected: "[head_dim / 2]".into(),
            got: shape_text(&info.shape),
        });
    };
    if info.source_type != crate::SourceType::F32 || len > 1 << 16 {
        return Err(ModelError::unsupported(
            format!("type of tensor {ROPE_FREQS}"),
            info.source_type.name(),
            "F32",
        ));
    }
    let bytes = file.read(info.offset, usize::try_from(info.bytes).unwrap_or(0))?;
    Ok(bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| f64::from(f32::from_le_bytes(b)))
        .collect())
}
