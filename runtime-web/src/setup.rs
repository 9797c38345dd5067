//! What an engine will be, before there is a device: manifest, plan and declared context checked against each
//! other, and every size that follows from them.

use moa_format::{
    DType, FormatError, KV_VALUE_BYTES, Manifest, ModelConfig, Plan, TensorEntry, TensorRole,
};
use moa_mask::abi::HeadSpan;
use moa_mask::density::kv_density;
use moa_mask::{HeadMask, KvBytes, KvFormat, ModelMasks, PREFILL_CHUNK, RingLayout, SLACK, memory};
use moa_shaders::{HeadShape, VectorType, WeightType, WorkList};

use crate::error::{EngineError, Result};
use crate::gpu::Needs;
use crate::weight_layout::{MAX_BUFFER_BYTES, WeightLayout};

/// A model, a plan and a declared context that fit together.
#[derive(Debug, Clone)]
pub struct Setup {
    manifest: Manifest,
    plan: Plan,
    context: u32,
    masks: ModelMasks,
    heads: HeadShape,
    kv_format: KvFormat,
}

/// What the KV memory of a setup takes, exactly, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KvReport {
    /// Sinks and rings, slack included.
    pub cache: u64,
    /// K and V of a prefill chunk.
    pub scratch: u64,
    /// Cache and scratch.
    pub total: u64,
    /// A dense cache of the same context, without slack or scratch.
    pub dense: u64,
    /// Mean over KV heads of visible keys over all keys at the context.
    pub kv_density: f64,
}

impl Setup {
    /// Checks that `plan` and `context` suit the model and that there are kernels for it.
    pub fn new(manifest: Manifest, plan: Plan, context: u32) -> Result<Self> {
        let config = &manifest.model;
        let bad_plan = |source: FormatError| EngineError::Plan { source };
        plan.check().map_err(bad_plan)?;
        plan.check_model(config).map_err(bad_plan)?;
        if context == 0 || context > config.max_context {
            return Err(EngineError::BadContext {
                got: context,
                most: config.max_context,
            });
        }
        let masks = plan.masks(context).map_err(bad_plan)?;
        let heads = HeadShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        heads
            .check()
            .map_err(|error| EngineError::UnsupportedModel {
                what: "the shape of attention".into(),
                got: error.to_string(),
                expected: "a shape that the kernels serve",
            })?;
        let setup = Self {
            manifest,
            plan,
            context,
            masks,
            heads,
            kv_format: KvFormat::Sixteen,
        };
        setup.check_tensors()?;
        Ok(setup)
    }

    /// The same with caches kept in `format`; 16 bits a value is the default.
    pub fn with_kv_format(self, format: KvFormat) -> Self {
        Self {
            kv_format: format,
            ..self
        }
    }

    /// How keys and values are kept.
    pub fn kv_format(&self) -> KvFormat {
        self.kv_format
    }

    /// The plan that `name` means: the file given, be it a bundle's `plan-<name>.bin` or plan JSON for people, or
    /// without one the dense plan, which needs no file.
    pub fn choose_plan(manifest: &Manifest, name: &str, bytes: Option<&[u8]>) -> Result<Plan> {
        let bad_plan = |source: FormatError| EngineError::Plan { source };
        match (bytes, manifest.plan(name)) {
            (Some(bytes), Ok(entry)) if bytes.starts_with(b"MOA-PLAN") => {
                manifest.open_plan(entry, bytes).map_err(bad_plan)
            }
            (Some(bytes), _) => parse_plan(bytes, name, &manifest.model),
            (None, _) if name == "dense" => {
                Ok(Plan::dense(&manifest.model, moa_mask::MaskGrid::default()))
            }
            (None, Ok(_)) => Err(EngineError::BadArgument {
                what: "the plan's file",
                got: format!("missing for plan {name}"),
                expected: "its bytes",
            }),
            (None, Err(source)) => Err(EngineError::Plan { source }),
        }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.manifest.model
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The masks of the plan at the declared context.
    pub fn masks(&self) -> &ModelMasks {
        &self.masks
    }

    /// The declared context M in tokens.
    pub fn context(&self) -> u32 {
        self.context
    }

    /// The shape that is compiled into the attention kernels.
    pub fn heads(&self) -> HeadShape {
        self.heads
    }

    /// Tokens that the chunk scratch holds.
    pub fn chunk_capacity(&self) -> u32 {
        PREFILL_CHUNK.min(self.context)
    }

    /// Exact KV bytes, the same that the engine allocates.
    pub fn kv_report(&self) -> Result<KvReport> {
        let shape = self.config().kv_shape();
        let KvBytes { cache, scratch } = shape
            .format_bytes(&self.masks, self.context, PREFILL_CHUNK, self.kv_format)
            .map_err(|source| EngineError::Plan {
                source: source.into(),
            })?;
        Ok(KvReport {
            cache,
            scratch,
            total: cache + scratch,
            dense: shape.dense_bytes(self.context, KV_VALUE_BYTES),
            kv_density: kv_density(self.masks.iter(), self.context),
        })
    }

    /// The longest span that any head's visible keys reach, summed over a layer's KV heads: what attention costs.
    pub(crate) fn visible_keys(&self, layer: usize, len: u32) -> u64 {
        let seen = |mask: &HeadMask| u64::from(mask.span().min(len));
        self.masks.layer(layer).iter().map(seen).sum()
    }

    /// Bytes of the keys and values that a query at the end of `len` tokens sees in a layer.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn visible_bytes(&self, layer: usize, len: u32) -> u64 {
        2 * self.visible_keys(layer, len) * self.row_bytes()
    }

    /// Bytes of one layer's K (or V) cache.
    pub(crate) fn layer_cache_bytes(&self, layer: usize) -> u64 {
        let (_, slots) = memory::slot_offsets(self.masks.layer(layer), self.context, SLACK);
        u64::from(slots) * self.row_bytes()
    }

    /// Bytes of the K (or V) of a prefill chunk.
    pub(crate) fn chunk_kv_bytes(&self) -> u64 {
        let row = KvFormat::Sixteen.row_bytes(self.heads.head_dim);
        u64::from(self.chunk_capacity()) * u64::from(self.heads.kv_heads) * row
    }

    /// Bytes of the (cos, sin) table.
    pub(crate) fn rope_bytes(&self) -> u64 {
        u64::from(self.context) * u64::from(self.heads.head_dim) * 4
    }

    /// Bytes of `width` f32 values for every token of a chunk.
    pub(crate) fn rows_bytes(&self, width: u32) -> u64 {
        u64::from(self.chunk_capacity()) * u64::from(width) * 4
    }

    /// Bytes of decode attention's partial results in the layer that has most of them.
    pub(crate) fn partials_bytes(&self) -> u64 {
        let partials = |layer| self.work_list(&self.spans(layer)).partials;
        let most = (0..self.masks.layers()).map(partials).max().unwrap_or(0);
        u64::from(most) * (u64::from(self.heads.head_dim) + 2) * 4
    }

    /// What the KV heads of a layer see, and where their rings lie.
    pub(crate) fn spans(&self, layer: usize) -> Vec<HeadSpan> {
        let masks = self.masks.layer(layer);
        let (offsets, _) = memory::slot_offsets(masks, self.context, SLACK);
        let span = |(&mask, slot_offset): (&HeadMask, u32)| {
            let layout = RingLayout::new(mask, self.context, SLACK);
            HeadSpan {
                sink: layout.sink,
                window: mask.window,
                ring: layout.ring,
                slot_offset,
            }
        };
        masks.iter().zip(offsets).map(span).collect()
    }

    /// Decode attention's work list for the spans of a layer.
    pub(crate) fn work_list(&self, spans: &[HeadSpan]) -> WorkList {
        WorkList::new(spans, self.context, self.heads)
    }

    fn row_bytes(&self) -> u64 {
        self.kv_format.row_bytes(self.heads.head_dim)
    }

    /// The largest buffer and the largest binding, for the device's limits.
    pub fn needs(&self) -> Needs {
        let config = self.config();
        let weight_bytes = |most| WeightLayout::of(&self.manifest, most).largest_buffer_bytes();
        let caches = (0..self.masks.layers()).map(|layer| self.layer_cache_bytes(layer));
        let widest = config.hidden_dim.max(config.ffn_dim).max(config.q_dim());
        let others = [
            self.chunk_kv_bytes(),
            self.rope_bytes(),
            self.rows_bytes(widest),
            self.partials_bytes(),
            u64::from(config.vocab_size) * 4,
        ];
        let bound = caches.chain(others).max().unwrap_or(0);
        let buffer_bytes = weight_bytes(MAX_BUFFER_BYTES).max(bound);
        // No part of a weight buffer that is bound is larger than it.
        Needs {
            buffer_bytes,
            binding_bytes: buffer_bytes,
            table_bytes: weight_bytes(u64::MAX),
        }
    }

    /// Shapes and types that the kernels do not serve are refused here, not found out by a kernel.
    fn check_tensors(&self) -> Result<()> {
        let specs = moa_format::tensors(self.config());
        for (tensor, spec) in self.manifest.weights.tensors.iter().zip(&specs) {
            match spec.role {
                TensorRole::Norm | TensorRole::Bias => {
                    vector_type(tensor)?;
                    if tensor.pieces.len() != 1 {
                        return Err(EngineError::UnsupportedModel {
                            what: format!("number of pieces of {}", tensor.name),
                            got: tensor.pieces.len().to_string(),
                            expected: "one piece for a norm or a bias",
                        });
                    }
                }
                TensorRole::Embedding | TensorRole::LmHead | TensorRole::Linear => {
                    let step = weight_type(tensor.dtype).column_step();
                    if !tensor.cols.is_multiple_of(step) {
                        return Err(EngineError::UnsupportedModel {
                            what: format!("columns of {}", tensor.name),
                            got: tensor.cols.to_string(),
                            expected: "a multiple of 4, or of 32 where quantized",
                        });
                    }
                }
            }
        }
        for (what, dim) in [
            ("hidden_dim", self.config().hidden_dim),
            ("ffn_dim", self.config().ffn_dim),
        ] {
            if !dim.is_multiple_of(4) {
                return Err(EngineError::UnsupportedModel {
                    what: what.into(),
                    got: dim.to_string(),
                    expected: "a multiple of 4",
                });
            }
        }
        Ok(())
    }
}

fn parse_plan(bytes: &[u8], name: &str, model: &ModelConfig) -> Result<Plan> {
    let plan = if bytes.starts_with(b"MOA-PLAN") {
        Plan::from_bin(bytes)
    } else {
        Plan::import(bytes, moa_format::ImportOptions::new(name, model))
    };
    plan.map_err(|source| EngineError::Plan { source })
}

/// The kernels' name for a stored type.
pub(crate) const fn weight_type(dtype: DType) -> WeightType {
    match dtype {
        DType::Q4 => WeightType::Q4,
        DType::Q8 => WeightType::Q8,
        DType::F16 => WeightType::F16,
        DType::F32 => WeightType::F32,
    }
}

/// The kernels' name for the stored type of a norm or a bias.
pub(crate) fn vector_type(tensor: &TensorEntry) -> Result<VectorType> {
    match tensor.dtype {
        DType::F16 => Ok(VectorType::F16),
        DType::F32 => Ok(VectorType::F32),
        DType::Q4 | DType::Q8 => Err(EngineError::UnsupportedModel {
            what: format!("type of {}", tensor.name),
            got: tensor.dtype.name().to_owned(),
            expected: "f16 or f32 for a norm or a bias",
        }),
    }
}
