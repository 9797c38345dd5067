//! Prelude, constants, shared parts and kernel into one source. No import language and no preprocessor: a
//! variant is a choice of shared parts and the value of a constant.

use std::fmt::Write as _;

use moa_mask::{KvFormat, abi};

use crate::{HeadShape, Kernel, KvTarget, Lanes, MatmulThreads, VectorType, WeightType};

const MASK: &str = include_str!("../wgsl/shared/mask.wgsl");
const KV_ROW_CHUNK: &str = include_str!("../wgsl/shared/kv_row_chunk.wgsl");
const KV_ROW_RING: &str = include_str!("../wgsl/shared/kv_row_ring.wgsl");
const PARTS: &str = include_str!("../wgsl/shared/parts.wgsl");
const CHOOSE: &str = include_str!("../wgsl/shared/choose.wgsl");
const VECTOR_NONE: &str = include_str!("../wgsl/shared/vector_none.wgsl");

const fn weights(weight: WeightType) -> &'static [&'static str] {
    const UNQUANTIZED: &str = include_str!("../wgsl/shared/weights_unquantized.wgsl");
    match weight {
        WeightType::Q4 => &[include_str!("../wgsl/shared/weights_q4.wgsl")],
        WeightType::Q8 => &[include_str!("../wgsl/shared/weights_q8.wgsl")],
        WeightType::F16 => &[include_str!("../wgsl/shared/weights_f16.wgsl"), UNQUANTIZED],
        WeightType::F32 => &[include_str!("../wgsl/shared/weights_f32.wgsl"), UNQUANTIZED],
    }
}

const fn vector(vector: VectorType) -> &'static str {
    match vector {
        VectorType::F16 => include_str!("../wgsl/shared/vector_f16.wgsl"),
        VectorType::F32 => include_str!("../wgsl/shared/vector_f32.wgsl"),
    }
}

const WORDS: &str = include_str!("../wgsl/shared/words.wgsl");
const FOUR_ROWS: &str = include_str!("../wgsl/shared/four_rows.wgsl");
const ROWS_IN_PIECES: &str = include_str!("../wgsl/shared/rows_in_pieces.wgsl");

/// Weights in blocks, found by their places in a binding.
const fn blocks(weight: WeightType) -> &'static [&'static str] {
    const UNQUANTIZED: &str = include_str!("../wgsl/shared/blocks_unquantized.wgsl");
    match weight {
        WeightType::Q4 => &[WORDS, include_str!("../wgsl/shared/blocks_q4.wgsl")],
        WeightType::Q8 => &[WORDS, include_str!("../wgsl/shared/blocks_q8.wgsl")],
        WeightType::F16 => &[
            WORDS,
            include_str!("../wgsl/shared/blocks_f16.wgsl"),
            UNQUANTIZED,
        ],
        WeightType::F32 => &[
            WORDS,
            include_str!("../wgsl/shared/blocks_f32.wgsl"),
            UNQUANTIZED,
        ],
    }
}

/// A norm whose weights lie in the same binding as the matrices.
const fn norm(norm: VectorType) -> &'static str {
    match norm {
        VectorType::F16 => include_str!("../wgsl/shared/norm_f16.wgsl"),
        VectorType::F32 => include_str!("../wgsl/shared/norm_f32.wgsl"),
    }
}

const fn norm_apart(norm: Option<VectorType>) -> &'static str {
    match norm {
        None => include_str!("../wgsl/shared/norm_none.wgsl"),
        Some(VectorType::F16) => include_str!("../wgsl/shared/norm_apart_f16.wgsl"),
        Some(VectorType::F32) => include_str!("../wgsl/shared/norm_apart_f32.wgsl"),
    }
}

const fn bias(bias: Option<VectorType>) -> &'static str {
    match bias {
        None => include_str!("../wgsl/shared/bias_none.wgsl"),
        Some(VectorType::F16) => include_str!("../wgsl/shared/bias_f16.wgsl"),
        Some(VectorType::F32) => include_str!("../wgsl/shared/bias_f32.wgsl"),
    }
}

/// Cached rows, eight channels at a time.
const fn kv(format: KvFormat) -> &'static str {
    match format {
        KvFormat::Sixteen => include_str!("../wgsl/shared/kv_f16.wgsl"),
        KvFormat::Int8 => include_str!("../wgsl/shared/kv_int8.wgsl"),
    }
}

/// Cached rows, four channels at a time.
const fn ring(format: KvFormat) -> &'static str {
    match format {
        KvFormat::Sixteen => include_str!("../wgsl/shared/ring_f16.wgsl"),
        KvFormat::Int8 => include_str!("../wgsl/shared/ring_int8.wgsl"),
    }
}

/// One value for each query head that decode attention serves at once.
const fn heads(served: u32) -> &'static str {
    match served {
        1 => include_str!("../wgsl/shared/heads_1.wgsl"),
        2 => include_str!("../wgsl/shared/heads_2.wgsl"),
        3 | 4 => include_str!("../wgsl/shared/heads_4.wgsl"),
        _ => include_str!("../wgsl/shared/heads_8.wgsl"),
    }
}

impl Kernel {
    fn shared(self, shape: HeadShape) -> Vec<&'static str> {
        match self {
            Self::Embedding(weight) => [blocks(weight), &[ROWS_IN_PIECES]].concat(),
            Self::RmsNorm(kind) => vec![vector(kind)],
            Self::Matmul { weight, bias, .. } | Self::Matvec { weight, bias, .. } => {
                [weights(weight), &[bias.map_or(VECTOR_NONE, vector)]].concat()
            }
            Self::Project {
                weight, norm: kind, ..
            } => [
                blocks(weight),
                &[norm_apart(kind), FOUR_ROWS, ROWS_IN_PIECES],
            ]
            .concat(),
            Self::GateUp {
                weight, norm: kind, ..
            } => [blocks(weight), &[norm(kind), FOUR_ROWS]].concat(),
            Self::Qkv {
                weight,
                norm: kind,
                bias: added,
                ..
            } => [blocks(weight), &[MASK, norm(kind), bias(added), FOUR_ROWS]].concat(),
            Self::Rope(KvTarget::Chunk) => vec![KV_ROW_CHUNK],
            Self::Rope(KvTarget::Ring) => vec![MASK, KV_ROW_RING],
            Self::KvCommit(_) => vec![MASK],
            Self::AttentionPrefill(format) => vec![MASK, ring(format)],
            Self::AttentionDecode(format) => {
                vec![MASK, PARTS, kv(format), heads(shape.heads_per_item())]
            }
            Self::MergeLse => vec![MASK, PARTS],
            Self::Argmax | Self::Sample => vec![CHOOSE],
            Self::Swiglu => Vec::new(),
        }
    }

    const fn body(self) -> &'static str {
        match self {
            Self::Embedding(_) => include_str!("../wgsl/embedding.wgsl"),
            Self::RmsNorm(_) => include_str!("../wgsl/rms_norm.wgsl"),
            Self::Matmul {
                threads: MatmulThreads::Wide | MatmulThreads::Short,
                ..
            } => include_str!("../wgsl/matmul.wgsl"),
            Self::Matmul {
                threads: MatmulThreads::Narrow,
                ..
            } => include_str!("../wgsl/variants/matmul_narrow.wgsl"),
            Self::Matvec { .. } => include_str!("../wgsl/matvec.wgsl"),
            Self::Project { .. } => include_str!("../wgsl/project.wgsl"),
            Self::Qkv { .. } => include_str!("../wgsl/qkv.wgsl"),
            Self::GateUp { .. } => include_str!("../wgsl/gate_up.wgsl"),
            Self::Rope(_) => include_str!("../wgsl/rope.wgsl"),
            Self::KvCommit(KvFormat::Sixteen) => include_str!("../wgsl/kv_commit.wgsl"),
            Self::KvCommit(KvFormat::Int8) => include_str!("../wgsl/variants/kv_commit_int8.wgsl"),
            Self::AttentionPrefill(_) => include_str!("../wgsl/attention_prefill.wgsl"),
            Self::AttentionDecode(_) => include_str!("../wgsl/attention_decode.wgsl"),
            Self::MergeLse => include_str!("../wgsl/merge_lse.wgsl"),
            Self::Swiglu => include_str!("../wgsl/swiglu.wgsl"),
            Self::Argmax => include_str!("../wgsl/argmax.wgsl"),
            Self::Sample => include_str!("../wgsl/sample.wgsl"),
        }
    }

    /// The whole source of this variant for a model's heads. Check the shape first ([`HeadShape::check`]).
    pub fn source(self, shape: HeadShape) -> String {
        let mut text = abi::wgsl_prelude();
        text.push_str(&constants(self, shape));
        for part in self.shared(shape) {
            text.push('\n');
            text.push_str(part);
        }
        text.push('\n');
        text.push_str(self.body());
        text
    }
}

fn constants(kernel: Kernel, shape: HeadShape) -> String {
    let mut text = String::from("// The model's heads, and this variant.\n");
    for (name, value) in [
        ("HEADS", shape.heads),
        ("KV_HEADS", shape.kv_heads),
        ("HEAD_DIM", shape.head_dim),
        ("GQA_GROUP", shape.gqa_group()),
        ("HEADS_PER_ITEM", shape.heads_per_item()),
        ("DECODE_ROUND", shape.decode_round()),
        ("MERGE_CHANNELS", shape.merge_channels()),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "const {name}: u32 = {value}u;");
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the scale is an f32 in every kernel"
    )]
    let scale = (1.0 / f64::from(shape.head_dim).sqrt()) as f32;
    let _ = writeln!(text, "const SOFTMAX_SCALE: f32 = {scale:?};");
    text.push_str(
        "// Below every score and logit; finite, since WGSL promises nothing for infinities.\n",
    );
    text.push_str("const UNSEEN: f32 = -3.0e38;\n");
    if let Kernel::Matmul { add, .. } | Kernel::Matvec { add, .. } | Kernel::Project { add, .. } =
        kernel
    {
        let _ = writeln!(text, "const ADD_TO_Y: bool = {add};");
    }
    if let Kernel::Matmul { threads, .. } = kernel {
        let _ = writeln!(text, "const TILE_TOKENS: u32 = {}u;", threads.tokens());
    }
    if let Kernel::Project { lanes, .. }
    | Kernel::Qkv { lanes, .. }
    | Kernel::GateUp { lanes, .. } = kernel
    {
        let _ = writeln!(text, "const THREADS: u32 = {}u;", Lanes::THREADS);
        let _ = writeln!(text, "const LANES: u32 = {}u;", lanes.lanes());
        let _ = writeln!(text, "const SET_ROWS: u32 = {}u;", lanes.set_rows());
    }
    text
}

/// Every kernel in every variant.
pub fn permutations() -> Vec<Kernel> {
    let mut list = Vec::new();
    for weight in WeightType::ALL {
        list.push(Kernel::Embedding(weight));
        for bias in [None, Some(VectorType::F16), Some(VectorType::F32)] {
            for add in [false, true] {
                list.extend(MatmulThreads::ALL.map(|threads| Kernel::Matmul {
                    weight,
                    bias,
                    add,
                    threads,
                }));
                list.push(Kernel::Matvec { weight, bias, add });
            }
        }
    }
    list.extend(WeightType::ALL.into_iter().flat_map(fused));
    list.extend(VectorType::ALL.map(Kernel::RmsNorm));
    for format in [KvFormat::Sixteen, KvFormat::Int8] {
        list.extend([
            Kernel::KvCommit(format),
            Kernel::AttentionPrefill(format),
            Kernel::AttentionDecode(format),
        ]);
    }
    list.extend([
        Kernel::Rope(KvTarget::Chunk),
        Kernel::Rope(KvTarget::Ring),
        Kernel::MergeLse,
        Kernel::Swiglu,
        Kernel::Argmax,
        Kernel::Sample,
    ]);
    list
}

/// The kernels whose sources differ between models: what other shapes than the first are checked with. Of the many
/// variants of `qkv` one a weight type, for the rest of it is the same for every shape.
pub fn head_permutations() -> Vec<Kernel> {
    let of_every_shape = |kernel: &Kernel| match kernel {
        Kernel::Qkv {
            norm, bias, lanes, ..
        } => (*norm, *bias, *lanes) == (VectorType::F16, Some(VectorType::F16), Lanes::L32),
        _ => kernel.depends_on_heads(),
    };
    permutations().into_iter().filter(of_every_shape).collect()
}

/// The fused kernels of a weight type. The variants that a model mixes freely (how work is shared, how norms and
/// biases are stored) are all there; those that differ in one word of the source only are not multiplied further.
fn fused(weight: WeightType) -> Vec<Kernel> {
    let mut list: Vec<Kernel> = [true, false]
        .map(|add| Kernel::Project {
            weight,
            norm: None,
            add,
            lanes: Lanes::L64Two,
        })
        .into();
    for lanes in Lanes::ALL {
        for (norm, add) in [
            (None, true),
            (None, false),
            (Some(VectorType::F16), false),
            (Some(VectorType::F32), false),
        ] {
            list.push(Kernel::Project {
                weight,
                norm,
                add,
                lanes,
            });
        }
        for norm in VectorType::ALL {
            list.push(Kernel::GateUp {
                weight,
                norm,
                lanes,
            });
            for bias in [None, Some(norm)] {
                list.push(Kernel::Qkv {
                    weight,
                    norm,
                    bias,
                    lanes,
                });
            }
        }
    }
    list
}
