//! The kernels by name, with the buffers that each of them binds.

use moa_mask::KvFormat;

use crate::HeadShape;
use crate::shape::DECODE_THREADS;

/// How a weight matrix is stored; the layouts are those of `moa-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightType {
    /// Nibbles in groups of 32, f16 scale and minimum.
    Q4,
    /// Signed bytes in groups of 32, f16 scale.
    Q8,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl WeightType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Q4, Self::Q8, Self::F16, Self::F32];

    /// The name in sources and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4 => "q4",
            Self::Q8 => "q8",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Whether a piece has scales apart from its values.
    pub const fn has_scales(self) -> bool {
        matches!(self, Self::Q4 | Self::Q8)
    }

    /// What the number of columns must be a multiple of.
    pub const fn column_step(self) -> u32 {
        if self.has_scales() {
            moa_mask::abi::QUANT_GROUP
        } else {
            4
        }
    }
}

/// How a vector (norm weights, bias) is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VectorType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl VectorType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::F16, Self::F32];

    /// The name in sources and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// Where `rope` puts keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvTarget {
    /// The chunk scratch, in prefill.
    Chunk,
    /// The ring, in decode.
    Ring,
}

/// How many of a workgroup's 256 threads share how many rows of weights in the fused kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lanes {
    /// 16: for matrices with rows enough for every core.
    L16,
    /// 32: for rows of 1,024 columns at most.
    L32,
    /// 64: for few long rows.
    L64,
    /// 64, for two rows: more workgroups of fewer rows. [`Kernel::Project`] alone has it.
    L64Two,
    /// 32 for one row: short rows of inputs that come as codes.
    L32One,
    /// 64 for one row of such inputs.
    L64One,
}

impl Lanes {
    /// Every choice for four rows.
    pub const ALL: [Self; 3] = [Self::L16, Self::L32, Self::L64];

    /// Threads of a workgroup.
    pub const THREADS: u32 = 256;

    /// Threads that share rows.
    pub const fn lanes(self) -> u32 {
        match self {
            Self::L16 => 16,
            Self::L32 | Self::L32One => 32,
            Self::L64 | Self::L64Two | Self::L64One => 64,
        }
    }

    /// Rows that they share.
    pub const fn set_rows(self) -> u32 {
        match self {
            Self::L32One | Self::L64One => 1,
            Self::L64Two => 2,
            _ => 4,
        }
    }

    /// Rows of weights that a workgroup reads.
    pub const fn rows(self) -> u32 {
        self.set_rows() * Self::THREADS / self.lanes()
    }

    /// The name in labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L16 => "l16",
            Self::L32 => "l32",
            Self::L64 => "l64",
            Self::L64Two => "l64_two",
            Self::L32One => "l32_one",
            Self::L64One => "l64_one",
        }
    }
}

/// How a workgroup of [`Kernel::Matmul`] shares its 64 rows of 64 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatmulThreads {
    /// Among 256 threads.
    Wide,
    /// Among 256 threads, and 32 tokens only: for matrices of few rows.
    Short,
    /// Among 64 threads: quicker on software adapters.
    Narrow,
}

impl MatmulThreads {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Wide, Self::Short, Self::Narrow];

    /// Tokens of a workgroup.
    pub const fn tokens(self) -> u32 {
        match self {
            Self::Wide | Self::Narrow => 64,
            Self::Short => 32,
        }
    }
}

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
        /// A norm in the load.
        norm: Option<VectorType>,
        /// Whether the result is added to what the output holds: the residual.
        add: bool,
        /// Whether the inputs are codes, of weights of this type: bytes with scales, as the kernel before leaves them.
        codes: bool,
        /// How work is shared.
        lanes: Lanes,
    },
    /// Norm, queries, keys and values, rotation, and the way into the ring, of the token in flight.
    Qkv {
        /// How the weights are stored.
        weight: WeightType,
        /// How the norm's weights are stored.
        norm: VectorType,
        /// A bias to add.
        bias: Option<VectorType>,
        /// How work is shared.
        lanes: Lanes,
    },
    /// Norm, gate, up, and their joining, of the token in flight.
    GateUp {
        /// How the weights are stored.
        weight: WeightType,
        /// How the norm's weights are stored.
        norm: VectorType,
        /// Whether the outputs are codes, for a product with weights of this type.
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
        /// Whether the outputs are codes, and for a product with weights of which type.
        codes: Option<WeightType>,
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

    /// Whether there is a source for a model's heads.
    pub fn serves(self, shape: HeadShape) -> bool {
        !matches!(self, Self::MergeLse { codes: Some(_) }) || shape.leaves_codes()
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
                norm,
                add,
                codes,
                lanes,
            } => {
                let norm = norm.map_or(String::new(), |vector| format!(".norm_{}", vector.name()));
                let add = if add { ".add" } else { "" };
                let codes = if codes { ".codes" } else { "" };
                let (weight, lanes) = (weight.name(), lanes.name());
                format!("{stem}.{weight}{norm}{codes}{add}.{lanes}")
            }
            Self::Qkv {
                weight,
                norm,
                bias,
                lanes,
            } => {
                let bias = bias.map_or(String::new(), |vector| format!(".bias_{}", vector.name()));
                let (weight, norm) = (weight.name(), norm.name());
                format!("{stem}.{weight}.norm_{norm}{bias}.{}", lanes.name())
            }
            Self::GateUp {
                weight,
                norm,
                codes,
                lanes,
            } => {
                let codes = if codes { ".codes" } else { "" };
                let (weight, norm) = (weight.name(), norm.name());
                format!("{stem}.{weight}.norm_{norm}{codes}.{}", lanes.name())
            }
            Self::MergeLse {
                codes: Some(weight),
            } => format!("{stem}.codes_{}", weight.name()),
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
            Self::Project { .. } | Self::Qkv { .. } | Self::GateUp { .. } => Lanes::THREADS,
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
            Self::Project { norm, .. } => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "x", Read);
                add(3, "values", Read);
                add(4, "y", ReadWrite);
                add(5, "words", Read);
                if norm.is_some() {
                    add(6, "vector", Read);
                }
            }
            Self::GateUp { .. } => {
                add(0, "params", Uniform);
                add(1, "state", Read);
                add(2, "x", Read);
                add(3, "values", Read);
                add(4, "y", ReadWrite);
                add(5, "words", Read);
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
                add(1, "state", Read);
                add(2, "q", Read);
                add(3, "k_ring", Read);
                add(4, "v_ring", Read);
                add(5, "items", Read);
                add(6, "partials", ReadWrite);
            }
            Self::MergeLse { .. } => {
                add(1, "state", Read);
                add(2, "partials", Read);
                add(4, "y", ReadWrite);
                add(5, "items", Read);
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
