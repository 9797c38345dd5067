//! GGUF metadata to a model shape.
//!
//! Keys that would change what the model computes and that the engines do not know are refused by name;
//! everything else that is unknown (authors, tags, quantizer notes) is passed over.

use moa_format::{Family, ModelConfig, RopeConfig, RopeScaling};

use super::header::Header;
use super::value::{Metadata, Value};
use crate::{ModelError, Result};

/// What messages call the families.
pub(crate) const FAMILIES: &str =
    "Llama 1, 2 and 3 (with SmolLM2 and Vicuna), Mistral without sliding window, Qwen2 and Qwen2.5";

pub(crate) fn family_name(family: Family) -> &'static str {
    match family {
        Family::Llama => "llama",
        Family::Mistral => "mistral",
        Family::Qwen2 => "qwen2",
    }
}

/// Reads the shape; `rope_freqs` are the divisors that the file carries as a tensor.
pub(crate) fn read(header: &Header, rope_freqs: Option<Vec<f64>>) -> Result<ModelConfig> {
    let meta = &header.metadata;
    let arch = meta.required_text("general.architecture")?;
    let family = match arch {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        other => return Err(ModelError::unsupported("architecture", other, FAMILIES)),
    };
    let key = |name: &str| format!("{arch}.{name}");
    let required = |name: &str| meta.required_u32(&key(name));
    refuse_unknown_computation(meta, arch)?;

    let (hidden_dim, heads) = (
        required("embedding_length")?,
        required("attention.head_count")?,
    );
    let max_context = required("context_length")?;
    refuse_sliding_window(meta, &key("attention.sliding_window"), max_context)?;
    let head_dim = match meta.u32(&key("attention.key_length"))? {
        Some(head_dim) => head_dim,
        None => hidden_dim.checked_div(heads).unwrap_or(0),
    };
    for (name, what) in [
        ("attention.value_length", "head size of V"),
        ("rope.dimension_count", "partial rotation"),
    ] {
        if let Some(got) = meta.u32(&key(name))?.filter(|&got| got != head_dim) {
            return Err(ModelError::unsupported(
                what,
                format!("({} = {got}, head_dim = {head_dim})", key(name)),
                "equal to head_dim",
            ));
        }
    }
    let eps = key("attention.layer_norm_rms_epsilon");
    let rms_norm_eps = meta
        .f64(&eps)?
        .ok_or_else(|| meta.bad(&eps, "a number from 0 to 1", "absent"))?;
    let vocab_size = match header.tensors.get("token_embd.weight") {
        Some(info) => u32::try_from(info.shape[0]).unwrap_or(u32::MAX),
        None => required("vocab_size")?,
    };
    let config = ModelConfig {
        family,
        layers: required("block_count")?,
        hidden_dim,
        ffn_dim: required("feed_forward_length")?,
        heads,
        kv_heads: meta.u32(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        vocab_size,
        rms_norm_eps,
        rope: rope(meta, arch, rope_freqs)?,
        tied_embeddings: !header.tensors.contains_key("output.weight"),
        qkv_bias: family == Family::Qwen2,
        max_context,
        bos: meta
            .u32("tokenizer.ggml.bos_token_id")?
            .filter(|&id| id < vocab_size),
        eos: eos(meta, vocab_size)?,
    };
    config.check().map_err(|source| ModelError::BadConfig {
        origin: meta.origin().to_owned(),
        source,
    })?;
    Ok(config)
}

fn rope(meta: &Metadata, arch: &str, divisors: Option<Vec<f64>>) -> Result<RopeConfig> {
    let theta = meta
        .f64(&format!("{arch}.rope.freq_base"))?
        .unwrap_or(10_000.0);
    let factor_key = format!("{arch}.rope.scaling.factor");
    let old_factor = meta.f64(&format!("{arch}.rope.scale_linear"))?;
    let linear = match meta.text(&format!("{arch}.rope.scaling.type"))? {
        Some("none") => None,
        None => old_factor,
        Some("linear") => match meta.f64(&factor_key)?.or(old_factor) {
            Some(factor) => Some(factor),
            None => {
                return Err(meta.bad(&factor_key, "the factor of linear rope scaling", "absent"));
            }
        },
        Some(other) => {
            return Err(ModelError::unsupported(
                "rope scaling type",
                other,
                "none, linear, llama3",
            ));
        }
    };
    let linear = linear
        .filter(|&factor| factor != 1.0)
        .map(|factor| RopeScaling::Linear { factor });
    let divisors = divisors.filter(|divisors| divisors.iter().any(|&d| d != 1.0));
    let scaling = match (linear, divisors) {
        (linear, None) => linear,
        (None, Some(divisors)) => Some(RopeScaling::Divisors { divisors }),
        (Some(_), Some(_)) => {
            return Err(ModelError::unsupported(
                "rope scaling",
                "linear together with rope_freqs.weight",
                "one of the two",
            ));
        }
    };
    Ok(RopeConfig { theta, scaling })
}

/// Ids that end a text: those the metadata names, then the well-known end tokens of chat formats among the
/// control tokens, since a file can name only one and chat models stop at another.
fn eos(meta: &Metadata, vocab_size: u32) -> Result<Vec<u32>> {
    const CONTROL: i64 = 3;
    let mut ids = Vec::new();
    for key in [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    ] {
        ids.extend(meta.u32(key)?);
    }
    let tokens = meta.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let types = meta
        .integers("tokenizer.ggml.token_type")?
        .unwrap_or_default();
    for (id, (token, &kind)) in (0u32..).zip(tokens.iter().zip(&types)) {
        if kind == CONTROL
            && matches!(
                token.as_str(),
                "<|im_end|>" | "<|eot_id|>" | "<|eom_id|>" | "<|endoftext|>"
            )
        {
            ids.push(id);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|&id| id < vocab_size && seen.insert(id));
    Ok(ids)
}

fn refuse_sliding_window(meta: &Metadata, key: &str, max_context: u32) -> Result<()> {
    match meta.u32(key)? {
        Some(window) if window != 0 && window < max_context => {
            let got = format!("({key} = {window}, context {max_context})");
            Err(ModelError::unsupported(
                "sliding window",
                got,
                "no sliding window, or one as long as the context",
            ))
        }
        _ => Ok(()),
    }
}

/// Refuses keys by which a llama-like file asks for something other than a plain dense decoder.
fn refuse_unknown_computation(meta: &Metadata, arch: &str) -> Result<()> {
    if let Some(experts) = meta
        .u32(&format!("{arch}.expert_count"))?
        .filter(|&n| n > 0)
    {
        return Err(ModelError::unsupported(
            "mixture of experts",
            format!("({experts} experts)"),
            "dense models",
        ));
    }
    for name in [
        "attention.head_count",
        "attention.head_count_kv",
        "feed_forward_length",
    ] {
        if let Some(Value::Array(array)) = meta.get(&format!("{arch}.{name}")) {
            let got = format!("({arch}.{name} is a list of {})", array.len());
            return Err(ModelError::unsupported(
                "layer-dependent shape",
                got,
                "the same shape in every layer",
            ));
        }
    }
    // Numbers that are one (or zero, where zero means absent) in a plain model.
    for name in [
        "logit_scale",
        "residual_scale",
        "embedding_scale",
        "attention.scale",
        "attention.max_alibi_bias",
        "attention.clamp_kqv",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_log_multiplier",
    ] {
        let key = format!("{arch}.{name}");
        if let Some(value) = meta.f64(&key)?.filter(|&v| v != 0.0 && v != 1.0) {
            return Err(ModelError::unsupported(
                name,
                value.to_string(),
                "models without it",
            ));
        }
    }
    for (name, plain) in [("attention.causal", true), ("use_parallel_residual", false)] {
        let key = format!("{arch}.{name}");
        if let Some(value) = meta.bool(&key)?.filter(|&v| v != plain) {
            return Err(ModelError::unsupported(
                name,
                value.to_string(),
                "causal models with sequential residuals",
            ));
        }
    }
    Ok(())
}
