//! The kernels by name, with the buffers that each of them binds.

use moa_mask::KvFormat;

use crate::choices::{Inputs, KvTarget, Lanes, MatmulThreads, VectorType, WeightType};
use crate::shape::DECODE_THREADS;

/// A kernel in one of its variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Gathers embedding rows.
    Embedding(WeightType),
    /// Root mean square norm.
    RmsNorm(VectorType),
    /// Many tokens against a weight piece.
    Matmul {
        /// How the weights are stored.
        weight: WeightType,
        /// A bias to add.
        bias: Option<VectorType>,
        /// Whether the result is added to what the output holds: the residual.
        add: bool,
        /// How work is shared.
        threads: MatmulThreads,
    },
    /// One token against a weight piece; the same bindings as [`Kernel::Matmul`].
    Matvec {
        /// How the weights are stored.
        weight: WeightType,
        /// A bias to add.
        bias: Option<VectorType>,
        /// Whether the result is added to what the output holds: the residual.
        add: bool,
    },
    /// The token in flight against the pieces of a matrix in one binding; for decode.
    Project {
        /// How the weights are stored.
        weight: WeightType,
        /// What they are multiplied with.
        inputs: Inputs,
        /// Whether the result is added to what the output holds: the residual.
        add: bool,
        /// Whether codes of the sums are left beside them, and how the weights of the norm that they meet are stored.
        leaves: Option<VectorType>,
        /// How work is shared.
        lanes: Lanes,
    },
    /// Norm, queries, keys and values, rotation, and the way into the ring, of the token in flight.
    Qkv {
        /// How the weights are stored.
        weight: WeightType,
        /// What they are multiplied with: the norm is in the load or in the codes.
        inputs: Inputs,
        /// A bias to add.
        bias: Option<VectorType>,
        /// How work is shared.
        lanes: Lanes,
    },
    /// Norm, gate, up, and their joining, of the token in flight.
    GateUp {
        /// How the weights are stored.
        weight: WeightType,
        /// What they are multiplied with: the norm is in the load or in the codes.
        inputs: Inputs,
        /// Whether the outputs are codes.
        codes: bool,
        /// How work is shared.
        lanes: Lanes,
    },
    /// Rotates queries and keys, stores keys and values as f16.
    Rope(KvTarget),
    /// Chunk scratch into the rings.
    KvCommit(KvFormat),
    /// Attention of a chunk over ring and chunk.
    AttentionPrefill(KvFormat),
    /// Attention of one token over the ring, in parts.
    AttentionDecode(KvFormat),
    /// Joins the parts of [`Kernel::AttentionDecode`].
    MergeLse {
        /// Whether the outputs are codes.
        codes: bool,
    },
    /// Gate and up, joined.
    Swiglu,
    /// The largest logit of each of [`ARGMAX_PARTS`](crate::ARGMAX_PARTS) parts.
    ArgmaxParts,
    /// The next token, greedily: the largest of those.
    Argmax,
    /// The next token, by chance or after penalties.
    Sample,
}

/// How a kernel uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A uniform buffer.
    Uniform,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer that is written.
    ReadWrite,
}

/// One entry of bind group 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Index in the bind group; indices need not be dense.
    pub index: u32,
    /// The variable's name in the source.
    pub name: &'static str,
    /// How it is used.
    pub access: Access,
}

impl Kernel {
    /// The file in `wgsl/` without its ending; also the twin's name in `reference`.
    pub const fn stem(self) -> &'static str {
        match self {
            Self::Embedding(_) => "embedding",
            Self::RmsNorm(_) => "rms_norm",
            Self::Matmul { .. } => "matmul",
            Self::Matvec { .. } => "matvec",
            Self::Project { .. } => "project",
            Self::Qkv { .. } => "qkv",
            Self::GateUp { .. } => "gate_up",
            Self::Rope(_) => "rope",
            Self::KvCommit(_) => "kv_commit",
            Self::AttentionPrefill(_) => "attention_prefill",
            Self::AttentionDecode(_) => "attention_decode",
            Self::MergeLse { .. } => "merge_lse",
            Self::Swiglu => "swiglu",
            Self::ArgmaxParts | Self::Argmax => "argmax",
            Self::Sample => "sample",
        }
    }

    /// Whether the source depends on the model's heads: the others are the same for every model.
    pub const fn depends_on_heads(self) -> bool {
        matches!(
            self,
            Self::Qkv { .. }
                | Self::Rope(_)
                | Self::KvCommit(_)
                | Self::AttentionPrefill(_)
                | Self::AttentionDecode(_)
                | Self::MergeLse { .. }
        )
    }

    /// Stem and variant, for labels and file names; the stem alone in a browser, where every byte is downloaded.
    pub fn label(self) -> String {
        let stem = self.stem();
        if cfg!(target_arch = "wasm32") {
            return stem.to_owned();
        }
        match self {
            Self::Embedding(weight) => format!("{stem}.{}", weight.name()),
            Self::RmsNorm(vector) => format!("{stem}.{}", vector.name()),
            Self::Matmul {
                weight, bias, add, ..
            }
            | Self::Matvec { weight, bias, add } => {
                let bias = bias.map_or(String::new(), |vector| format!(".bias_{}", vector.name()));
                let narrow = match self {
                    Self::Matmul {
                        threads: MatmulThreads::Narrow,
                        ..
                    } => ".narrow",
                    Self::Matmul {
                        threads: MatmulThreads::Short,
                        ..
                    } => ".short",
                    _ => "",
                };
                let add = if add { ".add" } else { "" };
                format!("{stem}.{}{bias}{add}{narrow}", weight.name())
            }
            Self::Project {
                weight,
                inputs,
                add,
                leaves,
                lanes,
            } => {
                let add = if add { ".add" } else { "" };
                let leaves =
                    leaves.map_or(String::new(), |norm| format!(".leaves_{}", norm.name()));
                let (weight, inputs, lanes) = (weight.name(), inputs.name(), lanes.name());
                format!("{stem}.{weight}{inputs}{add}{leaves}.{lanes}")
            }
            Self::Qkv {
                weight,
                inputs,
                bias,
                lanes,
            } => {
                let bias = bias.map_or(String::new(), |vector| format!(".bias_{}", vector.name()));
                let (weight, inputs) = (weight.name(), inputs.name());
                format!("{stem}.{weight}{inputs}{bias}.{}", lanes.name())
            }
            Self::GateUp {
                weight,
                inputs,
                codes,
                lanes,
            } => {
                let codes = if codes { ".codes" } else { "" };
                let (weight, inputs) = (weight.name(), inputs.name());
                format!("{stem}.{weight}{inputs}{codes}.{}", lanes.name())
            }
            Self::MergeLse { codes: true } => format!("{stem}.codes"),
            Self::ArgmaxParts => format!("{stem}.parts"),
            Self::Rope(KvTarget::Chunk) => format!("{stem}.chunk"),
            Self::Rope(KvTarget::Ring) => format!("{stem}.ring"),
            Self::KvCommit(KvFormat::Int8)
            | Self::AttentionPrefill(KvFormat::Int8)
            | Self::AttentionDecode(KvFormat::Int8) => format!("{stem}.int8"),
            _ => stem.to_owned(),
        }
    }

    /// Threads of a workgroup.
    pub const fn workgroup_size(self) -> u32 {
        match self {
            Self::Project { lanes, .. } | Self::Qkv { lanes, .. } | Self::GateUp { lanes, .. } => {
                lanes.threads()
            }
            Self::AttentionDecode(_) => DECODE_THREADS,
            Self::AttentionPrefill(_) => 128,
            Self::Matmul {
                threads: MatmulThreads::Wide | MatmulThreads::Short,
                ..
            }
            | Self::MergeLse { .. }
            | Self::ArgmaxParts
            | Self::Argmax
            | Self::Sample => 256,
            _ => 64,
        }
    }

    /// The buffers of bind group 0, in order of their index.
    pub fn bindings(self) -> Vec<Binding> {
        use Access::{Read, ReadWrite, Uniform};
        let mut list = Vec::with_capacity(9);
        let mut add = |index, name, access| {
            list.push(Binding {
                index,
                name,
                access,
            });
        };
        match self {
            Self::Embedding(_) => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "tokens", Read);
                add(3, "values", Read);
                add(4, "y", ReadWrite);
                add(5, "words", Read);
            }
            Self::RmsNorm(_) => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "x", Read);
                add(4, "y", ReadWrite);
                add(6, "vector", Read);
            }
            Self::Matmul { weight, bias, .. } | Self::Matvec { weight, bias, .. } => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "x", Read);
                add(3, "values", Read);
                add(4, "y", ReadWrite);
                if weight.has_scales() {
                    add(5, "scales", Read);
                }
                if bias.is_some() {
                    add(6, "vector", Read);
                }
            }
            Self::Project { inputs, leaves, .. } => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "x", Read);
                add(3, "values", Read);
                add(4, "y", ReadWrite);
                add(5, "words", Read);
                if leaves.is_some() || matches!(inputs, Inputs::Norm(_)) {
                    add(6, "vector", Read);
                }
                if leaves.is_some() {
                    add(7, "codes", ReadWrite);
                }
            }
            Self::GateUp { codes, .. } => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "x", Read);
                add(3, "values", Read);
                if !codes {
                    add(4, "y", ReadWrite);
                }
                add(5, "words", Read);
                if codes {
                    add(7, "codes", ReadWrite);
                }
            }
            Self::Qkv { .. } => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "x", Read);
                add(3, "values", Read);
                add(4, "table", Read);
                add(5, "words", Read);
                add(6, "q", ReadWrite);
                add(7, "k_ring", ReadWrite);
                add(8, "v_ring", ReadWrite);
                add(9, "spans", Uniform);
            }
            Self::Rope(target) => {
                add(1, "state", Read);
                add(2, "q", ReadWrite);
                add(3, "k", Read);
                add(4, "v", Read);
                add(5, "table", Read);
                add(6, "k_out", ReadWrite);
                add(7, "v_out", ReadWrite);
                if target == KvTarget::Ring {
                    add(8, "spans", Read);
                }
            }
            Self::KvCommit(_) => {
                add(1, "state", Read);
                add(2, "spans", Read);
                add(3, "k_chunk", Read);
                add(4, "v_chunk", Read);
                add(5, "k_ring", ReadWrite);
                add(6, "v_ring", ReadWrite);
            }
            Self::AttentionPrefill(_) => {
                add(1, "state", Read);
                add(2, "q", Read);
                add(3, "k_ring", Read);
                add(4, "v_ring", Read);
                add(5, "k_chunk", Read);
                add(6, "v_chunk", Read);
                add(7, "spans", Read);
                add(8, "y", ReadWrite);
            }
            Self::AttentionDecode(_) => {
                add(1, "state", Uniform);
                add(2, "q", Read);
                add(3, "k_ring", Read);
                add(4, "v_ring", Read);
                add(5, "items", Uniform);
                add(6, "partials", ReadWrite);
            }
            Self::MergeLse { codes } => {
                add(1, "state", Uniform);
                add(2, "partials", Read);
                if !codes {
                    add(4, "y", ReadWrite);
                }
                add(5, "items", Uniform);
                if codes {
                    add(7, "codes", ReadWrite);
                }
            }
            Self::Swiglu => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "gate", ReadWrite);
                add(3, "up", Read);
            }
            Self::ArgmaxParts => {
                add(0, "params", Uniform);
                add(2, "logits", Read);
                add(3, "best", ReadWrite);
            }
            Self::Argmax | Self::Sample => {
                let sampled = self == Self::Sample;
                if sampled {
                    add(0, "params", Uniform);
                }
                add(1, "state", ReadWrite);
                add(2, if sampled { "logits" } else { "best" }, Read);
                add(3, "tokens", ReadWrite);
                add(4, "ids", ReadWrite);
                add(5, "stops", Read);
                if self == Self::Sample {
                    add(6, "counts", ReadWrite);
                }
            }
        }
        list
    }
}
