//! The shape of a model, and the list of its tensors under their Hugging Face names.
//!
//! One dense decoder is described here, in the three families that differ only in biases and names; it
//! deliberately has no field for anything that the engines do not compute.

use moa_mask::KvShape;
use serde::{Deserialize, Serialize};

use crate::error::{FormatError, Result, ensure};
use crate::rope::RopeConfig;

/// Which published architecture the checkpoint was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 1, 2, 3.x, SmolLM2, Vicuna.
    Llama,
    /// Mistral without its own sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on Q, K and V.
    Qwen2,
}

/// Everything that the engines must know about a model besides its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The published architecture.
    pub family: Family,
    /// Transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden_dim: u32,
    /// Width of the MLP.
    pub ffn_dim: u32,
    /// Query heads of a layer.
    pub heads: u32,
    /// KV heads of a layer; divides `heads`.
    pub kv_heads: u32,
    /// Channels of a head; even.
    pub head_dim: u32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Added under the root of every RMS norm.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Whether `lm_head` is the embedding.
    pub tied_embeddings: bool,
    /// Whether Q, K and V have biases.
    pub qkv_bias: bool,
    /// Positions the model was trained for, in tokens.
    pub max_context: u32,
    /// Token that begins every text, if there is one.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// What a tensor does, which decides how it may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRole {
    /// Token embedding, `[vocab_size, hidden_dim]`.
    Embedding,
    /// Output projection, `[vocab_size, hidden_dim]`; absent where it is tied.
    LmHead,
    /// A weight of a linear layer, `[out, in]`.
    Linear,
    /// A norm's weight, one row.
    Norm,
    /// A bias, one row.
    Bias,
}

/// A tensor that a model of some config has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name.
    pub name: String,
    /// Rows (outputs); 1 for norms and biases.
    pub rows: u32,
    /// Columns (inputs); the length of norms and biases.
    pub cols: u32,
    /// What it does.
    pub role: TensorRole,
}

impl TensorSpec {
    /// Number of weights.
    pub fn len(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.cols)
    }

    /// Whether there is no weight, which no checked config gives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Name of the token embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the norm after the last layer.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Name of the output projection of models that do not tie it to the embedding.
pub const LM_HEAD: &str = "lm_head.weight";

/// Name of a layer's tensor, as in `layer_tensor(3, "self_attn.q_proj.weight")`.
pub fn layer_tensor(layer: u32, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

impl ModelConfig {
    /// Checks every number, so that later arithmetic can neither overflow nor divide by zero.
    pub fn check(&self) -> Result<()> {
        for (what, got, most) in [
            ("layers", self.layers, 1 << 12),
            ("hidden_dim", self.hidden_dim, 1 << 20),
            ("ffn_dim", self.ffn_dim, 1 << 22),
            ("heads", self.heads, 1 << 14),
            ("kv_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_context", self.max_context, 1 << 27),
        ] {
            ensure((1..=most).contains(&got), what, got, format!("1 to {most}"))?;
        }
        ensure(
            self.head_dim.is_multiple_of(2),
            "head_dim",
            self.head_dim,
            "an even number",
        )?;
        ensure(
            self.heads.is_multiple_of(self.kv_heads),
            "heads",
            self.heads,
            format!("a multiple of kv_heads {}", self.kv_heads),
        )?;
        ensure(
            u64::from(self.heads) * u64::from(self.head_dim) <= 1 << 20,
            "heads * head_dim",
            u64::from(self.heads) * u64::from(self.head_dim),
            "at most 1048576",
        )?;
        // A layer's slots are counted in u32.
        ensure(
            u64::from(self.kv_heads) * u64::from(self.max_context) <= u64::from(u32::MAX),
            "kv_heads * max_context",
            u64::from(self.kv_heads) * u64::from(self.max_context),
            format!("at most {}", u32::MAX),
        )?;
        ensure(
            self.rms_norm_eps.is_finite() && (0.0..1.0).contains(&self.rms_norm_eps),
            "rms_norm_eps",
            self.rms_norm_eps,
            "0 to 1",
        )?;
        self.rope.check(self.head_dim)?;
        for &id in self.bos.iter().chain(&self.eos) {
            ensure(
                id < self.vocab_size,
                "special token",
                id,
                format!("below vocab_size {}", self.vocab_size),
            )?;
        }
        Ok(())
    }

    /// Query heads that share one KV head.
    pub fn gqa_group(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Width of all query heads together.
    pub fn q_dim(&self) -> u32 {
        self.heads * self.head_dim
    }

    /// Width of all KV heads together.
    pub fn kv_dim(&self) -> u32 {
        self.kv_heads * self.head_dim
    }

    /// What decides the bytes of a KV cache.
    pub fn kv_shape(&self) -> KvShape {
        KvShape {
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Name of the tensor that turns hidden states into logits: the embedding where tied.
    pub fn lm_head(&self) -> &'static str {
        if self.tied_embeddings {
            EMBEDDING
        } else {
            LM_HEAD
        }
    }

    /// Context lengths at which densities and bytes are reported: 1k and its doublings below `max_context`,
    /// and `max_context` itself.
    pub fn report_lengths(&self) -> Vec<u32> {
        let mut lengths: Vec<u32> = std::iter::successors(Some(1024u32), |n| n.checked_mul(2))
            .take_while(|&n| n < self.max_context)
            .collect();
        lengths.push(self.max_context);
        lengths
    }
}

/// Every tensor of a model, in the order in which a forward pass meets them: the order of the bundle.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    use TensorRole::{Bias, Embedding, Linear, LmHead, Norm};
    let (hidden, ffn) = (config.hidden_dim, config.ffn_dim);
    let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
    let mut list = vec![spec(EMBEDDING.into(), config.vocab_size, hidden, Embedding)];
    for layer in 0..config.layers {
        let mut add = |part: &str, rows, cols, role| {
            list.push(spec(layer_tensor(layer, part), rows, cols, role));
        };
        add("input_layernorm.weight", 1, hidden, Norm);
        for (part, rows) in [("q_proj", q_dim), ("k_proj", kv_dim), ("v_proj", kv_dim)] {
            add(&format!("self_attn.{part}.weight"), rows, hidden, Linear);
            if config.qkv_bias {
                add(&format!("self_attn.{part}.bias"), 1, rows, Bias);
            }
        }
        add("self_attn.o_proj.weight", hidden, q_dim, Linear);
        add("post_attention_layernorm.weight", 1, hidden, Norm);
        add("mlp.gate_proj.weight", ffn, hidden, Linear);
        add("mlp.up_proj.weight", ffn, hidden, Linear);
        add("mlp.down_proj.weight", hidden, ffn, Linear);
    }
    list.push(spec(FINAL_NORM.into(), 1, hidden, Norm));
    if !config.tied_embeddings {
        list.push(spec(LM_HEAD.into(), config.vocab_size, hidden, LmHead));
    }
    list
}

fn spec(name: String, rows: u32, cols: u32, role: TensorRole) -> TensorSpec {
    TensorSpec {
        name,
        rows,
        cols,
        role,
    }
}

impl From<moa_mask::MaskError> for FormatError {
    fn from(source: moa_mask::MaskError) -> Self {
        Self::Mask {
            place: "plan".into(),
            source,
        }
    }
}
