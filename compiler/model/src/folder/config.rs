//! config.json to a model shape: old and new rope fields, defaults of each family, refusals by name.
//!
//! Defaults are those of the published configuration classes. A field that would change what the model
//! computes and that the engines do not know is refused; everything else that is unknown is passed over.

use std::path::Path;

use moa_format::{Family, ModelConfig, RopeConfig, RopeScaling};
use serde_json::{Map, Value};

use crate::gguf::FAMILIES;
pub(crate) use crate::gguf::family_name;
use crate::{ModelError, Result};

/// A JSON object of a file, with typed access that names the field in its refusals. Null counts as absent.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    origin: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(origin: &'a Path, json: &'a Value) -> Result<Self> {
        let map = json.as_object().ok_or_else(|| ModelError::BadField {
            origin: origin.to_owned(),
            field: "the document".into(),
            expected: "an object".into(),
            got: kind(json).into(),
        })?;
        Ok(Self { origin, map })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn bad(&self, name: &str, expected: &str, got: impl Into<String>) -> ModelError {
        ModelError::BadField {
            origin: self.origin.to_owned(),
            field: name.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.bad(name, expected, shorten(value))),
            },
        }
    }

    pub(crate) fn u32(&self, name: &str) -> Result<Option<u32>> {
        self.read(name, "an integer from 0 to 4294967295", |value| {
            let float = || {
                value
                    .as_f64()
                    .filter(|v| v.fract() == 0.0 && (0.0..1e9).contains(v))
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a whole number below 1e9"
            )]
            value
                .as_u64()
                .or_else(|| float().map(|v| v as u64))
                .and_then(|v| u32::try_from(v).ok())
        })
    }

    fn required(&self, name: &str) -> Result<u32> {
        self.u32(name)?
            .ok_or_else(|| self.bad(name, "an integer", "absent"))
    }

    fn f64(&self, name: &str) -> Result<Option<f64>> {
        self.read(name, "a finite number", |value| {
            value.as_f64().filter(|v| v.is_finite())
        })
    }

    fn bool(&self, name: &str) -> Result<bool> {
        Ok(self
            .read(name, "true or false", Value::as_bool)?
            .unwrap_or(false))
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.read(name, "a text", Value::as_str)
    }

    fn object(&self, name: &str) -> Result<Option<Self>> {
        let map = self.read(name, "an object", Value::as_object)?;
        Ok(map.map(|map| Self {
            origin: self.origin,
            map,
        }))
    }

    /// One token id or a list of them.
    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.read(
            name,
            "a token id or a list of token ids",
            |value| match value {
                Value::Array(list) => list.iter().map(id).collect(),
                one => id(one).map(|id| vec![id]),
            },
        )?;
        Ok(ids.unwrap_or_default())
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shorten(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).into(),
        scalar => scalar.to_string().chars().take(60).collect(),
    }
}

/// Reads config.json; `generation` is `generation_config.json`, whose end tokens come first.
pub(crate) fn read(config: Fields<'_>, generation: Option<Fields<'_>>) -> Result<ModelConfig> {
    let family = family(config)?;
    refuse_unknown_computation(config, family)?;
    let default = Defaults::of(family);
    let (hidden_dim, heads) = (
        config.required("hidden_size")?,
        config.required("num_attention_heads")?,
    );
    let max_context = match config.u32("max_position_embeddings")? {
        Some(positions) => positions,
        None => config
            .u32("max_sequence_length")?
            .unwrap_or(default.max_context),
    };
    refuse_sliding_window(config, family, max_context)?;
    let head_dim = match config.u32("head_dim")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_dim.is_multiple_of(heads) => hidden_dim / heads,
        None => {
            return Err(config.bad(
                "hidden_size",
                &format!("a multiple of num_attention_heads {heads}"),
                hidden_dim.to_string(),
            ));
        }
    };
    let vocab_size = config.required("vocab_size")?;
    let mut eos = match generation {
        Some(generation) => generation.ids("eos_token_id")?,
        None => Vec::new(),
    };
    for id in config.ids("eos_token_id")? {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    let model = ModelConfig {
        family,
        layers: config.required("num_hidden_layers")?,
        hidden_dim,
        ffn_dim: config.required("intermediate_size")?,
        heads,
        kv_heads: config
            .u32("num_key_value_heads")?
            .unwrap_or(default.kv_heads.unwrap_or(heads)),
        head_dim,
        vocab_size,
        rms_norm_eps: config.f64("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(config)?,
        tied_embeddings: config.bool("tie_word_embeddings")?,
        qkv_bias: family == Family::Qwen2,
        max_context,
        bos: config.ids("bos_token_id")?.first().copied(),
        eos,
    };
    model.check().map_err(|source| ModelError::BadConfig {
        origin: config.origin.to_owned(),
        source,
    })?;
    Ok(model)
}

/// What the published configuration classes assume where a file is silent.
struct Defaults {
    /// `None`: as many as there are query heads.
    kv_heads: Option<u32>,
    max_context: u32,
}

impl Defaults {
    fn of(family: Family) -> Self {
        match family {
            Family::Llama => Self {
                kv_heads: None,
                max_context: 2048,
            },
            Family::Mistral => Self {
                kv_heads: Some(8),
                max_context: 131_072,
            },
            Family::Qwen2 => Self {
                kv_heads: Some(32),
                max_context: 32_768,
            },
        }
    }
}

fn family(config: Fields<'_>) -> Result<Family> {
    let by_model_type = || match config.text("model_type") {
        Ok(Some(name)) => name.to_owned(),
        _ => "(config.json names neither architectures nor model_type)".to_owned(),
    };
    let names = config.get("architectures").and_then(Value::as_array);
    let name = match names
        .and_then(|names| names.first())
        .and_then(Value::as_str)
    {
        Some(name) => name.to_owned(),
        None => by_model_type(),
    };
    match name.as_str() {
        // The second spelling is that of early Llama 1 conversions.
        "LlamaForCausalLM" | "LLaMAForCausalLM" | "llama" => Ok(Family::Llama),
        "MistralForCausalLM" | "mistral" => Ok(Family::Mistral),
        "Qwen2ForCausalLM" | "qwen2" => Ok(Family::Qwen2),
        _ => Err(ModelError::unsupported("architecture", name, FAMILIES)),
    }
}

fn rope(config: Fields<'_>) -> Result<RopeConfig> {
    // transformers 5 writes rope_parameters; before that, rope_theta and rope_scaling stood side by side.
    let new = config.object("rope_parameters")?;
    let scaling = match new {
        Some(new) => Some(new),
        None => config.object("rope_scaling")?,
    };
    let theta = match new {
        Some(new) => new.f64("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => config.f64("rope_theta")?.unwrap_or(10_000.0),
    };
    let partial = match new {
        Some(new) => new.f64("partial_rotary_factor")?,
        None => None,
    };
    if let Some(part) = partial
        .or(config.f64("partial_rotary_factor")?)
        .filter(|&part| part != 1.0)
    {
        return Err(ModelError::unsupported(
            "partial_rotary_factor",
            part.to_string(),
            "1",
        ));
    }
    let Some(fields) = scaling else {
        return Ok(RopeConfig {
            theta,
            scaling: None,
        });
    };
    if let Some((name, _)) = fields.map.iter().find(|(_, value)| value.is_object()) {
        return Err(ModelError::unsupported(
            "rope_parameters by layer type",
            format!("({name})"),
            "one rope for all layers",
        ));
    }
    let kind = match fields.text("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.text("type")?,
    };
    let number = |name: &str| {
        fields
            .f64(name)?
            .ok_or_else(|| fields.bad(name, "a number", "absent"))
    };
    let scaling = match kind {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear {
            factor: number("factor")?,
        }),
        Some("llama3") => Some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: fields.required("original_max_position_embeddings")?,
        }),
        Some(other) => {
            return Err(ModelError::unsupported(
                "rope scaling type",
                other,
                "default, linear, llama3",
            ));
        }
    };
    Ok(RopeConfig { theta, scaling })
}

/// A window of the model's own, shorter than its context, would be a second mask.
fn refuse_sliding_window(config: Fields<'_>, family: Family, max_context: u32) -> Result<()> {
    let listed = config.get("layer_types").and_then(Value::as_array);
    if let Some(other) = listed
        .into_iter()
        .flatten()
        .find(|kind| !matches!(kind.as_str(), Some("full_attention" | "sliding_attention")))
    {
        return Err(ModelError::unsupported(
            "layer type",
            shorten(other),
            "full_attention",
        ));
    }
    let slides = match (family, listed) {
        (_, Some(kinds)) => kinds
            .iter()
            .any(|kind| kind.as_str() == Some("sliding_attention")),
        (Family::Qwen2, None) => config.bool("use_sliding_window")?,
        (Family::Llama, None) => false,
        (Family::Mistral, None) => true,
    };
    match config.u32("sliding_window")?.filter(|_| slides) {
        Some(window) if window < max_context => {
            let got = format!("(sliding_window {window}, max_position_embeddings {max_context})");
            Err(ModelError::unsupported(
                "sliding window",
                got,
                "no sliding window, or one as long as the context",
            ))
        }
        _ => Ok(()),
    }
}

fn refuse_unknown_computation(config: Fields<'_>, family: Family) -> Result<()> {
    for name in ["num_local_experts", "num_experts", "n_routed_experts"] {
        if let Some(experts) = config.u32(name)?.filter(|&n| n > 0) {
            return Err(ModelError::unsupported(
                "mixture of experts",
                format!("({name} {experts})"),
                "dense models",
            ));
        }
    }
    if let Some(quantization) = config.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("(unnamed)");
        return Err(ModelError::unsupported(
            "weight quantization",
            method,
            "safetensors of F32, F16 and BF16, and quantized GGUF files",
        ));
    }
    if let Some(act) = config
        .text("hidden_act")?
        .filter(|act| !matches!(*act, "silu" | "swish"))
    {
        return Err(ModelError::unsupported("activation", act, "silu"));
    }
    // Qwen2 has its biases on Q, K and V by definition and reads no such field.
    if family != Family::Qwen2 && config.bool("attention_bias")? {
        return Err(ModelError::unsupported(
            "attention bias",
            "on Q, K, V and output (attention_bias)",
            "none, or that of Qwen2",
        ));
    }
    if config.bool("mlp_bias")? {
        return Err(ModelError::unsupported("MLP bias", "(mlp_bias)", "none"));
    }
    Ok(())
}
