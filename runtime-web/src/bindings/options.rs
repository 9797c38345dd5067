//! What JavaScript hands over and gets back besides bytes: options as plain objects, errors with a code and a hint, documents
//! as JSON.

use js_sys::Reflect;
use moa_format::Manifest;
use moa_mask::KvFormat;
use moa_shaders::{Variant, VariantError};
use serde::Deserialize;
use wasm_bindgen::prelude::*;

use crate::create::EngineOptions;
use crate::error::EngineError;
use crate::gpu::Extras;
use crate::program::DecodeKernels;
use crate::sampler::Sampler;
use crate::setup::Setup;

pub(super) type JsResult<T> = std::result::Result<T, JsValue>;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
export interface EngineOptions {
  /** Tokens a prefill call takes at most. */
  prefillChunk?: number;
  /** Ask for nothing beyond WebGPU's default limits. */
  defaultLimits?: boolean;
  powerPreference?: "high-performance" | "low-power";
  /** Keys and values as bytes with a scale for each token and head: half the memory, rounded more coarsely. */
  int8Kv?: boolean;
  /** A variant of the kernels, or "auto": the base one until `tune` is called. */
  kernels?: string;
  /** The kernels of GPUs on a software adapter too, where others are quicker: for tests. */
  fused?: boolean;
  /** What the device may be asked for: of "subgroups", "f16" and "dp4a" those that the platform has. */
  extras?: readonly string[];
}
export interface SamplingOptions {
  /** 0 or absent: greedy, on the GPU. */
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: number;
  /** Divides the logits of tokens in the text; 1 or absent changes nothing. */
  repetitionPenalty?: number;
  /** Taken off the logits of tokens generated since the last prefill. */
  presencePenalty?: number;
  /** The same for each time that they were generated. */
  frequencyPenalty?: number;
}
"#;

#[wasm_bindgen]
extern "C" {
    /// A plain object with the fields of `EngineOptions`.
    #[wasm_bindgen(typescript_type = "EngineOptions")]
    pub type JsEngineOptions;
    /// A plain object with the fields of `SamplingOptions`.
    #[wasm_bindgen(typescript_type = "SamplingOptions")]
    pub type JsSamplingOptions;
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CreateOptions {
    prefill_chunk: Option<u32>,
    pub(super) default_limits: bool,
    pub(super) power_preference: Option<String>,
    #[serde(rename = "int8Kv")]
    int8_kv: bool,
    kernels: Option<String>,
    fused: bool,
    extras: Vec<String>,
}

pub(super) fn moa_error(code: &str, message: &str, hint: Option<&str>) -> JsValue {
    let error = js_sys::Error::new(message);
    error.set_name("MoaError");
    let fields = [
        ("code", code.into()),
        ("hint", hint.map_or(JsValue::UNDEFINED, Into::into)),
    ];
    for (key, value) in fields {
        // Setting a field of a fresh object cannot fail.
        let _ = Reflect::set(&error, &key.into(), &value);
    }
    error.into()
}

impl From<EngineError> for JsValue {
    fn from(error: EngineError) -> Self {
        moa_error(error.code(), &error.to_string(), error.hint())
    }
}

/// Reads a plain object through JSON: options are small.
pub(super) fn options<T: Default + for<'a> Deserialize<'a>>(
    value: Option<impl Into<JsValue>>,
) -> JsResult<T> {
    let Some(value) = value
        .map(Into::into)
        .filter(|value| !value.is_undefined() && !value.is_null())
    else {
        return Ok(T::default());
    };
    let bad = |reason: &str| moa_error("bad-argument", &format!("options: {reason}"), None);
    let text = js_sys::JSON::stringify(&value).map_err(|_cycle| bad("expected a plain object"))?;
    let text = text
        .as_string()
        .ok_or_else(|| bad("expected a plain object"))?;
    serde_json::from_str(&text).map_err(|error| bad(&error.to_string()))
}

pub(super) fn sampler(value: Option<JsSamplingOptions>) -> JsResult<Sampler> {
    Ok(Sampler::new(options(value)?)?)
}

impl CreateOptions {
    /// The plan of this name, or in these bytes, at a context.
    pub(super) fn setup(
        &self,
        manifest: Manifest,
        name: &str,
        bytes: Option<&[u8]>,
        context: u32,
    ) -> JsResult<Setup> {
        let plan = Setup::choose_plan(&manifest, name, bytes)?;
        let format = if self.int8_kv {
            KvFormat::Int8
        } else {
            KvFormat::Sixteen
        };
        Ok(Setup::new(manifest, plan, context)?.with_kv_format(format))
    }

    pub(super) fn engine(&self, variant: Variant) -> EngineOptions {
        EngineOptions {
            prefill_chunk: self.prefill_chunk,
            variant,
            decode_kernels: self.fused.then_some(DecodeKernels::Fused),
            ..EngineOptions::default()
        }
    }

    /// The variant to begin with, and what to ask the device for.
    pub(super) fn variant(&self) -> JsResult<(Variant, Extras)> {
        let has = |name: &str| self.extras.iter().any(|extra| extra == name);
        let offered = Extras {
            subgroups: has("subgroups"),
            f16: has("f16"),
            dp4a: has("dp4a"),
        };
        match self.kernels.as_deref() {
            None | Some("auto") => Ok((Variant::BASE, offered)),
            Some(name) => {
                let variant: Variant = name.parse().map_err(|error: VariantError| {
                    moa_error("bad-argument", &format!("kernels: {error}"), None)
                })?;
                Ok((variant, offered.and(Extras::of(variant))))
            }
        }
    }
}

pub(super) fn manifest(json: &str) -> JsResult<Manifest> {
    Ok(Manifest::from_json(json).map_err(|source| EngineError::Manifest { source })?)
}

/// A byte offset.
pub(super) fn whole(offset: f64) -> JsResult<u64> {
    if !(offset >= 0.0 && offset.fract() == 0.0 && offset < 9e15) {
        return Err(moa_error(
            "bad-chunk",
            &format!("offset is {offset}, expected a whole number"),
            None,
        ));
    }
    #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
    #[expect(clippy::cast_sign_loss, reason = "not negative")]
    let offset = offset as u64;
    Ok(offset)
}

pub(super) fn json(value: &impl serde::Serialize) -> JsResult<String> {
    serde_json::to_string(value).map_err(|error| moa_error("internal", &error.to_string(), None))
}
