//! Where weights come from, and where they go.
//!
//! A source gives f32 by canonical name, whatever it stores; every length is checked against the
//! configuration before a device sees it.

use moa_format::{EMBEDDING, FINAL_NORM, LM_HEAD, ModelConfig, TensorSpec, layer_tensor};

use crate::observer::{Observer, check};
use crate::{Device, Linear, LmError, Result, WeightError};

/// Something that holds a model's weights: a checkpoint or a bundle.
pub trait WeightSource {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// A tensor by its Hugging Face name, row-major.
    fn tensor_f32(&self, name: &str) -> std::result::Result<Vec<f32>, WeightError>;
}

/// A source that is a function from names to tensors: a checkpoint's, or made up.
#[derive(Debug)]
pub struct WeightsFrom<F> {
    config: ModelConfig,
    read: F,
}

impl<F> WeightsFrom<F> {
    /// A model of this shape whose tensors `read` gives.
    pub const fn new(config: ModelConfig, read: F) -> Self {
        Self { config, read }
    }
}

/// A source whose tensors are made up from what they should be.
pub fn made_weights<F>(config: ModelConfig, make: F) -> impl WeightSource
where
    F: Fn(&TensorSpec) -> Vec<f32>,
{
    let specs = moa_format::tensors(&config);
    WeightsFrom::new(config, move |name: &str| {
        let spec = specs.iter().find(|spec| spec.name == name);
        spec.map(&make).ok_or("no such tensor")
    })
}

impl<F, E> WeightSource for WeightsFrom<F>
where
    F: Fn(&str) -> std::result::Result<Vec<f32>, E>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_f32(&self, name: &str) -> std::result::Result<Vec<f32>, WeightError> {
        (self.read)(name).map_err(|error| WeightError::new(name, error))
    }
}

/// One layer's weights on a device.
#[derive(Debug)]
pub(crate) struct LayerWeights<B> {
    pub(crate) attention_norm: B,
    pub(crate) q: Linear<B>,
    pub(crate) k: Linear<B>,
    pub(crate) v: Linear<B>,
    pub(crate) o: Linear<B>,
    pub(crate) ffn_norm: B,
    pub(crate) gate: Linear<B>,
    pub(crate) up: Linear<B>,
    pub(crate) down: Linear<B>,
}

/// A model's weights on a device.
#[derive(Debug)]
pub(crate) struct Weights<B> {
    pub(crate) embedding: Linear<B>,
    pub(crate) layers: Vec<LayerWeights<B>>,
    pub(crate) final_norm: B,
    /// Absent where the embedding serves.
    lm_head: Option<Linear<B>>,
}

impl<B> Weights<B> {
    pub(crate) fn lm_head(&self) -> &Linear<B> {
        self.lm_head.as_ref().unwrap_or(&self.embedding)
    }
}

/// Reads tensors, checks their lengths and hands them to the device.
struct Loader<'a, D: Device> {
    device: &'a D,
    source: &'a dyn WeightSource,
}

impl<D: Device> Loader<'_, D> {
    fn values(&self, name: &str, rows: u32, cols: u32) -> Result<Vec<f32>> {
        let values = self.source.tensor_f32(name)?;
        let expected = u64::from(rows) * u64::from(cols);
        if values.len() as u64 != expected {
            return Err(LmError::TensorLength {
                tensor: name.to_owned(),
                got: values.len(),
                expected,
            });
        }
        Ok(values)
    }

    /// A norm's weight.
    fn norm(&self, name: &str, dim: u32) -> Result<D::Buffer> {
        self.device.upload(self.values(name, 1, dim)?)
    }

    fn linear(&self, name: &str, outputs: u32, inputs: u32) -> Result<Linear<D::Buffer>> {
        Ok(Linear {
            weight: self
                .device
                .upload_weight(self.values(name, outputs, inputs)?)?,
            bias: None,
            outputs: outputs as usize,
            inputs: inputs as usize,
        })
    }
}

pub(crate) fn load<D: Device>(
    device: &D,
    source: &dyn WeightSource,
    observer: &dyn Observer,
) -> Result<Weights<D::Buffer>> {
    let config = source.config();
    let (hidden, ffn) = (config.hidden_dim, config.ffn_dim);
    let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
    let loader = Loader { device, source };
    let embedding = loader.linear(EMBEDDING, config.vocab_size, hidden)?;
    let mut layers = Vec::with_capacity(config.layers as usize);
    for layer in 0..config.layers {
        check(observer)?;
        let name = |part: &str| layer_tensor(layer, part);
        let projection = |part: &str, outputs: u32| -> Result<Linear<D::Buffer>> {
            let mut linear =
                loader.linear(&name(&format!("self_attn.{part}.weight")), outputs, hidden)?;
            if config.qkv_bias {
                let bias = loader.values(&name(&format!("self_attn.{part}.bias")), 1, outputs)?;
                linear.bias = Some(device.upload_weight(bias)?);
            }
            Ok(linear)
        };
        layers.push(LayerWeights {
            attention_norm: loader.norm(&name("input_layernorm.weight"), hidden)?,
            q: projection("q_proj", q_dim)?,
            k: projection("k_proj", kv_dim)?,
            v: projection("v_proj", kv_dim)?,
            o: loader.linear(&name("self_attn.o_proj.weight"), hidden, q_dim)?,
            ffn_norm: loader.norm(&name("post_attention_layernorm.weight"), hidden)?,
            gate: loader.linear(&name("mlp.gate_proj.weight"), ffn, hidden)?,
            up: loader.linear(&name("mlp.up_proj.weight"), ffn, hidden)?,
            down: loader.linear(&name("mlp.down_proj.weight"), hidden, ffn)?,
        });
    }
    let lm_head = if config.tied_embeddings {
        None
    } else {
        Some(loader.linear(LM_HEAD, config.vocab_size, hidden)?)
    };
    Ok(Weights {
        embedding,
        layers,
        final_norm: loader.norm(FINAL_NORM, hidden)?,
        lm_head,
    })
}
