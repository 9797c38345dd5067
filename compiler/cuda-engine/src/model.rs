//! A model's weights on the device, in bf16, laid out for batched products.
//!
//! Q, K and V are one matrix. Heads of fewer channels than the kernels have are padded with zeros, which changes no score and no
//! output: channels are placed so that RoPE's pairs stay pairs.

use std::sync::Arc;

use half::bf16;
use moa_format::{EMBEDDING, FINAL_NORM, LM_HEAD, ModelConfig, layer_tensor};
use moa_kernels::{Buffer, CudaError, Gpu, HeadShape};
use moa_lm::{LmError, WeightSource};
use moa_mask::KvShape;

use crate::Result;

/// A linear layer's matrix, `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) weight: Buffer<bf16>,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

/// One layer's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Buffer<f32>,
    pub(crate) qkv: Matrix,
    /// Padded like the rows of `qkv`.
    pub(crate) bias: Option<Buffer<f32>>,
    pub(crate) o: Matrix,
    pub(crate) ffn_norm: Buffer<f32>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

/// A model on a device.
#[derive(Debug)]
pub struct Model {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) config: ModelConfig,
    /// The heads as the kernels have them.
    pub(crate) shape: HeadShape,
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Buffer<f32>,
    lm_head: Option<Matrix>,
}

/// Where a head's channels go: the first half to the begin, the second to the middle.
#[derive(Debug, Clone, Copy)]
struct Padding {
    channels: usize,
    padded: usize,
}

impl Padding {
    fn place(self, channel: usize) -> usize {
        let half = self.channels / 2;
        if channel < half {
            channel
        } else {
            self.padded / 2 + channel - half
        }
    }

    /// Rows of heads, each of `width` values, with zero rows between them.
    fn rows(self, rows: &[f32], width: usize) -> Vec<f32> {
        let heads = rows.len() / (self.channels * width);
        let mut padded = vec![0.0; heads * self.padded * width];
        for (row, values) in rows.chunks(width).enumerate() {
            let (head, channel) = (row / self.channels, row % self.channels);
            let to = (head * self.padded + self.place(channel)) * width;
            padded[to..to + width].copy_from_slice(values);
        }
        padded
    }

    /// Columns of heads, with zero columns between them.
    fn columns(self, matrix: &[f32], inputs: usize) -> Vec<f32> {
        matrix
            .chunks(inputs)
            .flat_map(|row| self.rows(row, 1))
            .collect()
    }
}

/// Reads a source and checks lengths.
struct Checked<'a>(&'a dyn WeightSource);

impl Checked<'_> {
    fn matrix(&self, name: &str, outputs: u32, inputs: u32) -> Result<Vec<f32>> {
        let values = self.0.tensor_f32(name).map_err(LmError::from)?;
        let expected = u64::from(outputs) * u64::from(inputs);
        if values.len() as u64 != expected {
            return Err(LmError::TensorLength {
                tensor: name.to_owned(),
                got: values.len(),
                expected,
            }
            .into());
        }
        Ok(values)
    }
}

fn upload(gpu: &Gpu, values: &[f32]) -> Result<Buffer<bf16>> {
    let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
    Ok(gpu.upload(&values)?)
}

/// The heads of `config` as the kernels have them.
fn head_shape(config: &ModelConfig) -> Result<HeadShape> {
    let head_dim = match config.head_dim {
        0..=64 => 64,
        65..=128 => 128,
        other => {
            return Err(CudaError::Shape {
                what: "head_dim",
                expected: "at most 128",
                got: other as usize,
            }
            .into());
        }
    };
    Ok(HeadShape {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim,
    })
}

impl Model {
    /// Moves a model's weights to `gpu`, rounded to bf16.
    ///
    /// # Errors
    /// The source's, [`LmError::TensorLength`], [`LmError::Config`], and the device's.
    pub fn load(gpu: Arc<Gpu>, source: &dyn WeightSource) -> Result<Self> {
        let config = source.config().clone();
        config.check().map_err(LmError::from)?;
        let shape = head_shape(&config)?;
        let padding = Padding {
            channels: config.head_dim as usize,
            padded: shape.head_dim as usize,
        };
        let values = Checked(source);
        let (hidden, ffn) = (config.hidden_dim, config.ffn_dim);
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let whole = |name: &str, outputs: u32, inputs: u32| -> Result<Matrix> {
            Ok(Matrix {
                weight: upload(&gpu, &values.matrix(name, outputs, inputs)?)?,
                outputs: outputs as usize,
                inputs: inputs as usize,
            })
        };
        let norm = |name: &str| -> Result<Buffer<f32>> {
            Ok(gpu.upload(&values.matrix(name, 1, hidden)?)?)
        };
        let embedding = whole(EMBEDDING, config.vocab_size, hidden)?;
        let mut layers = Vec::with_capacity(config.layers as usize);
        for layer in 0..config.layers {
            let name = |part: &str| layer_tensor(layer, part);
            let (mut rows, mut bias) = (Vec::new(), Vec::new());
            for (part, outputs) in [("q", q_dim), ("k", kv_dim), ("v", kv_dim)] {
                let part = |kind: &str| name(&format!("self_attn.{part}_proj.{kind}"));
                let matrix = values.matrix(&part("weight"), outputs, hidden)?;
                rows.extend(padding.rows(&matrix, hidden as usize));
                if config.qkv_bias {
                    bias.extend(padding.rows(&values.matrix(&part("bias"), 1, outputs)?, 1));
                }
            }
            let o = values.matrix(&name("self_attn.o_proj.weight"), hidden, q_dim)?;
            let o = padding.columns(&o, q_dim as usize);
            layers.push(Layer {
                attention_norm: norm(&name("input_layernorm.weight"))?,
                qkv: Matrix {
                    weight: upload(&gpu, &rows)?,
                    outputs: rows.len() / hidden as usize,
                    inputs: hidden as usize,
                },
                bias: if bias.is_empty() {
                    None
                } else {
                    Some(gpu.upload(&bias)?)
                },
                o: Matrix {
                    weight: upload(&gpu, &o)?,
                    outputs: hidden as usize,
                    inputs: o.len() / hidden as usize,
                },
                ffn_norm: norm(&name("post_attention_layernorm.weight"))?,
                gate: whole(&name("mlp.gate_proj.weight"), ffn, hidden)?,
                up: whole(&name("mlp.up_proj.weight"), ffn, hidden)?,
                down: whole(&name("mlp.down_proj.weight"), hidden, ffn)?,
            });
        }
        let lm_head = if config.tied_embeddings {
            None
        } else {
            Some(whole(LM_HEAD, config.vocab_size, hidden)?)
        };
        Ok(Self {
            final_norm: norm(FINAL_NORM)?,
            gpu,
            config,
            shape,
            embedding,
            layers,
            lm_head,
        })
    }

    /// Weights that mean nothing, for benches: one block of noise, repeated on the device. Norms are 1.
    ///
    /// # Errors
    /// [`LmError::Config`] and the device's.
    pub fn random(gpu: Arc<Gpu>, config: ModelConfig, noise: &[bf16]) -> Result<Self> {
        config.check().map_err(LmError::from)?;
        let shape = head_shape(&config)?;
        let noise = gpu.upload(noise)?;
        let (hidden, ffn) = (config.hidden_dim as usize, config.ffn_dim as usize);
        let head_dim = shape.head_dim as usize;
        let (q_dim, kv_dim) = (
            shape.heads as usize * head_dim,
            shape.kv_heads as usize * head_dim,
        );
        let matrix = |outputs: usize, inputs: usize| -> Result<Matrix> {
            let mut weight = gpu.zeros(outputs * inputs)?;
            gpu.repeat(&noise, &mut weight)?;
            Ok(Matrix {
                weight,
                outputs,
                inputs,
            })
        };
        let norm = || -> Result<Buffer<f32>> { Ok(gpu.upload(&vec![1.0f32; hidden])?) };
        let vocab = config.vocab_size as usize;
        let layer = |_| -> Result<Layer> {
            Ok(Layer {
                attention_norm: norm()?,
                qkv: matrix(q_dim + 2 * kv_dim, hidden)?,
                bias: None,
                o: matrix(hidden, q_dim)?,
                ffn_norm: norm()?,
                gate: matrix(ffn, hidden)?,
                up: matrix(ffn, hidden)?,
                down: matrix(hidden, ffn)?,
            })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        let lm_head = if config.tied_embeddings {
            None
        } else {
            Some(matrix(vocab, hidden)?)
        };
        Ok(Self {
            embedding: matrix(vocab, hidden)?,
            layers,
            final_norm: norm()?,
            lm_head,
            shape,
            config,
            gpu: gpu.clone(),
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the weights lie.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// What decides the bytes of caches here: channels of heads are padded to 64 or 128.
    pub fn kv_shape(&self) -> KvShape {
        KvShape {
            head_dim: self.shape.head_dim,
            ..self.config.kv_shape()
        }
    }

    pub(crate) fn lm_head(&self) -> &Matrix {
        self.lm_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Cosines and sines of positions below `context`, as the kernels read them; padding is not turned.
    pub(crate) fn angles(&self, context: u32) -> Result<Buffer<f32>> {
        let half = (self.config.head_dim / 2) as usize;
        let padded = (self.shape.head_dim / 2) as usize;
        let (cos, sin) = self.config.rope.cos_sin(self.config.head_dim, 0..context);
        let mut angles = Vec::with_capacity(context as usize * padded * 2);
        for (cos, sin) in cos.chunks(half).zip(sin.chunks(half)) {
            for (&cos, &sin) in cos.iter().zip(sin) {
                angles.extend([cos, sin]);
            }
            for _ in half..padded {
                angles.extend([1.0, 0.0]);
            }
        }
        Ok(self.gpu.upload(&angles)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_keeps_the_pairs_of_rope() {
        let padding = Padding {
            channels: 4,
            padded: 8,
        };
        // Two heads of four rows, one value a row.
        let rows = padding.rows(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 1);
        assert_eq!(
            rows,
            [
                1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 5.0, 6.0, 0.0, 0.0, 7.0, 8.0, 0.0, 0.0
            ]
        );
        let columns = padding.columns(&[1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0, 6.0], 4);
        assert_eq!(
            columns,
            [
                1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 9.0, 8.0, 0.0, 0.0, 7.0, 6.0, 0.0, 0.0
            ]
        );
    }
}
