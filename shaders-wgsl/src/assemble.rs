//! Prelude, constants, shared parts and kernel into one source. No import language and no preprocessor: a
//! variant is a choice of shared parts and the value of a constant.

use std::fmt::Write as _;

use moa_mask::KvFormat;
use moa_mask::abi::{self, GateUpParams, ProjectParams, QkvParams};

use crate::variant::{Dialect, Products, Variant};
use crate::{
    HeadShape, Inputs, Kernel, KvTarget, Lanes, MatmulThreads, VectorType, WeightType, WorkList,
};

/// A source as the build script has left it.
macro_rules! wgsl {
    ($path:literal) => {
        include_str!(concat!(env!("OUT_DIR"), "/wgsl/", $path))
    };
}

const MASK: &str = wgsl!("shared/mask.wgsl");
const KV_ROW_CHUNK: &str = wgsl!("shared/kv_row_chunk.wgsl");
const KV_ROW_RING: &str = wgsl!("shared/kv_row_ring.wgsl");
const PARTS: &str = wgsl!("shared/parts.wgsl");
const CHOOSE: &str = wgsl!("shared/choose.wgsl");
const MATMUL_OUTPUT: &str = wgsl!("shared/matmul_output.wgsl");
const VECTOR_NONE: &str = wgsl!("shared/vector_none.wgsl");

const fn weights(weight: WeightType) -> &'static [&'static str] {
    const UNQUANTIZED: &str = wgsl!("shared/weights_unquantized.wgsl");
    match weight {
        WeightType::Q4 => &[wgsl!("shared/weights_q4.wgsl")],
        WeightType::Q8 => &[wgsl!("shared/weights_q8.wgsl")],
        WeightType::F16 => &[wgsl!("shared/weights_f16.wgsl"), UNQUANTIZED],
        WeightType::F32 => &[wgsl!("shared/weights_f32.wgsl"), UNQUANTIZED],
    }
}

const fn vector(vector: VectorType) -> &'static str {
    match vector {
        VectorType::F16 => wgsl!("shared/vector_f16.wgsl"),
        VectorType::F32 => wgsl!("shared/vector_f32.wgsl"),
    }
}

const WORDS: &str = wgsl!("shared/words.wgsl");
const CODES: &str = wgsl!("shared/codes.wgsl");
const ROWS_IN_PIECES: &str = wgsl!("shared/rows_in_pieces.wgsl");

/// Weights in blocks, found by their places in a binding.
const fn blocks(weight: WeightType) -> &'static [&'static str] {
    const UNQUANTIZED: &str = wgsl!("shared/blocks_unquantized.wgsl");
    match weight {
        WeightType::Q4 => &[WORDS, wgsl!("shared/blocks_q4.wgsl")],
        WeightType::Q8 => &[WORDS, wgsl!("shared/blocks_q8.wgsl")],
        WeightType::F16 => &[WORDS, wgsl!("shared/blocks_f16.wgsl"), UNQUANTIZED],
        WeightType::F32 => &[WORDS, wgsl!("shared/blocks_f32.wgsl"), UNQUANTIZED],
    }
}

const fn bias(bias: Option<VectorType>) -> &'static str {
    match bias {
        None => wgsl!("shared/bias_none.wgsl"),
        Some(VectorType::F16) => wgsl!("shared/bias_f16.wgsl"),
        Some(VectorType::F32) => wgsl!("shared/bias_f32.wgsl"),
    }
}

/// Cached rows, eight channels at a time.
const fn kv(format: KvFormat) -> &'static str {
    match format {
        KvFormat::Sixteen => wgsl!("shared/kv_f16.wgsl"),
        KvFormat::Int8 => wgsl!("shared/kv_int8.wgsl"),
    }
}

/// Cached rows, four channels at a time.
const fn ring(format: KvFormat) -> &'static str {
    match format {
        KvFormat::Sixteen => wgsl!("shared/ring_f16.wgsl"),
        KvFormat::Int8 => wgsl!("shared/ring_int8.wgsl"),
    }
}

/// One value for each query head that decode attention serves at once.
const fn heads(served: u32) -> &'static str {
    match served {
        1 => wgsl!("shared/heads_1.wgsl"),
        2 => wgsl!("shared/heads_2.wgsl"),
        _ => wgsl!("shared/heads_4.wgsl"),
    }
}

/// What threads find out together: by exchange within subgroups, or through workgroup memory alone.
macro_rules! together {
    ($name:ident, $stem:literal) => {
        const fn $name(variant: Variant) -> &'static str {
            if variant.subgroups {
                include_str!(concat!(
                    env!("OUT_DIR"),
                    "/wgsl/shared/",
                    $stem,
                    "_in_subgroups.wgsl"
                ))
            } else {
                include_str!(concat!(
                    env!("OUT_DIR"),
                    "/wgsl/shared/",
                    $stem,
                    "_in_workgroup.wgsl"
                ))
            }
        }
    };
}

together!(set_sums, "set_sums");
together!(total, "total");
together!(largest, "largest");
together!(scores, "scores");

const LARGEST: &str = wgsl!("shared/largest.wgsl");
const ORDER_Q4: &str = wgsl!("shared/order_q4.wgsl");
const ORDER_Q8: &str = wgsl!("shared/order_q8.wgsl");
const DOT8: &str = wgsl!("shared/dot8.wgsl");
const PACKED_BYTES: &str = wgsl!("shared/packed_bytes.wgsl");

/// What `matmul_scaled` multiplies, and how; nothing for products in f32.
const fn tiles(products: Products, weight: WeightType) -> &'static [&'static str] {
    const F16: &str = wgsl!("shared/tiles_f16.wgsl");
    const DP4A: &str = wgsl!("shared/tiles_dp4a.wgsl");
    const COLUMNS_Q4: &str = wgsl!("shared/columns_q4.wgsl");
    const COLUMNS_Q8: &str = wgsl!("shared/columns_q8.wgsl");
    const Q4: &str = wgsl!("shared/bytes_q4.wgsl");
    const Q8: &str = wgsl!("shared/bytes_q8.wgsl");
    match (products, weight) {
        (Products::F16, WeightType::Q4) => &[ORDER_Q4, COLUMNS_Q4, Q4, F16],
        (Products::F16, WeightType::Q8) => &[ORDER_Q8, COLUMNS_Q8, Q8, F16],
        (Products::Dp4a, WeightType::Q4) => &[ORDER_Q4, COLUMNS_Q4, Q4, DOT8, PACKED_BYTES, DP4A],
        (Products::Dp4a, WeightType::Q8) => &[ORDER_Q8, COLUMNS_Q8, Q8, DOT8, PACKED_BYTES, DP4A],
        _ => &[],
    }
}

/// Products of blocks with codes.
const fn products_of_codes(weight: WeightType) -> [&'static str; 2] {
    match weight {
        WeightType::Q8 => [ORDER_Q8, wgsl!("shared/packed_q8.wgsl")],
        _ => [ORDER_Q4, wgsl!("shared/packed_q4.wgsl")],
    }
}

/// Rows of weights against the token in flight, and all that this takes; `apart` where a norm's weights have a binding of
/// their own.
fn rows(variant: Variant, weight: WeightType, inputs: Inputs, apart: bool) -> Vec<&'static str> {
    let mut list = [blocks(weight), &[set_sums(variant)]].concat();
    let norm = match (inputs, apart) {
        (Inputs::Codes | Inputs::NormedCodes, _) => {
            list.extend([CODES, DOT8]);
            list.extend(products_of_codes(weight));
            list.push(wgsl!("shared/rows_of_codes.wgsl"));
            return list;
        }
        (Inputs::Plain, _) => wgsl!("shared/norm_none.wgsl"),
        (Inputs::Norm(VectorType::F16), false) => wgsl!("shared/norm_f16.wgsl"),
        (Inputs::Norm(VectorType::F32), false) => wgsl!("shared/norm_f32.wgsl"),
        (Inputs::Norm(VectorType::F16), true) => wgsl!("shared/norm_apart_f16.wgsl"),
        (Inputs::Norm(VectorType::F32), true) => wgsl!("shared/norm_apart_f32.wgsl"),
    };
    list.extend([norm, wgsl!("shared/four_rows.wgsl")]);
    list
}

/// What writes codes; where inputs are codes too, what these are is there already.
fn codes_left(of_codes: bool) -> Vec<&'static str> {
    let mut list = vec![PACKED_BYTES, wgsl!("shared/outputs_codes.wgsl")];
    if !of_codes {
        list.push(CODES);
    }
    list
}

/// Outputs as they are, or as codes.
fn outputs(codes: bool, of_codes: bool) -> Vec<&'static str> {
    if !codes {
        return vec![wgsl!("shared/outputs_f32.wgsl")];
    }
    let mut list = codes_left(of_codes);
    list.push(wgsl!("shared/leaves_none.wgsl"));
    list
}

/// Codes of a product's sums beside them, or nothing.
fn leaving(leaves: Option<VectorType>, of_codes: bool) -> Vec<&'static str> {
    match leaves {
        None => vec![wgsl!("shared/leaves_nothing.wgsl")],
        Some(norm) => {
            let mut list = codes_left(of_codes);
            list.extend([vector(norm), wgsl!("shared/leaves_codes.wgsl")]);
            list
        }
    }
}

impl Kernel {
    fn shared(self, shape: HeadShape, variant: Variant) -> Vec<&'static str> {
        match self {
            Self::Embedding(weight) => [blocks(weight), &[ROWS_IN_PIECES]].concat(),
            Self::RmsNorm(kind) => vec![vector(kind), total(variant)],
            Self::Matmul {
                weight,
                bias,
                threads: MatmulThreads::Wide | MatmulThreads::Short,
                ..
            } => [
                weights(weight),
                &[bias.map_or(VECTOR_NONE, vector), MATMUL_OUTPUT],
                tiles(variant.products, weight),
            ]
            .concat(),
            Self::Matmul { weight, bias, .. } | Self::Matvec { weight, bias, .. } => {
                [weights(weight), &[bias.map_or(VECTOR_NONE, vector)]].concat()
            }
            Self::Project {
                weight,
                inputs,
                leaves,
                ..
            } => [
                &rows(variant, weight, inputs, true)[..],
                &leaving(leaves, inputs.are_codes()),
                &[ROWS_IN_PIECES],
            ]
            .concat(),
            Self::GateUp {
                weight,
                inputs,
                codes,
                ..
            } => [
                rows(variant, weight, inputs, false),
                outputs(codes, inputs.are_codes()),
            ]
            .concat(),
            Self::Qkv {
                weight,
                inputs,
                bias: added,
                ..
            } => [
                &rows(variant, weight, inputs, false)[..],
                &[MASK, bias(added)],
            ]
            .concat(),
            Self::Rope(KvTarget::Chunk) => vec![KV_ROW_CHUNK],
            Self::Rope(KvTarget::Ring) => vec![MASK, KV_ROW_RING],
            Self::KvCommit(KvFormat::Sixteen) => vec![MASK],
            Self::KvCommit(KvFormat::Int8) => vec![MASK, PACKED_BYTES],
            Self::AttentionPrefill(format) => vec![MASK, ring(format)],
            Self::AttentionDecode(format) => {
                vec![
                    PARTS,
                    kv(format),
                    heads(shape.heads_per_item()),
                    scores(variant),
                ]
            }
            Self::MergeLse { codes } => [vec![PARTS], outputs(codes, false)].concat(),
            Self::ArgmaxParts => vec![LARGEST, largest(variant)],
            Self::Argmax | Self::Sample => vec![CHOOSE, LARGEST, largest(variant)],
            Self::Swiglu => Vec::new(),
        }
    }

    const fn body(self, products: Products) -> &'static str {
        match self {
            Self::Embedding(_) => wgsl!("embedding.wgsl"),
            Self::RmsNorm(_) => wgsl!("rms_norm.wgsl"),
            Self::Matmul {
                threads: MatmulThreads::Wide | MatmulThreads::Short,
                ..
            } => match products {
                Products::F32 => wgsl!("matmul.wgsl"),
                Products::F16 | Products::Dp4a => {
                    wgsl!("variants/matmul_scaled.wgsl")
                }
            },
            Self::Matmul {
                threads: MatmulThreads::Narrow,
                ..
            } => wgsl!("variants/matmul_narrow.wgsl"),
            Self::Matvec { .. } => wgsl!("matvec.wgsl"),
            Self::Project { .. } => wgsl!("project.wgsl"),
            Self::Qkv { .. } => wgsl!("qkv.wgsl"),
            Self::GateUp { .. } => wgsl!("gate_up.wgsl"),
            Self::Rope(_) => wgsl!("rope.wgsl"),
            Self::KvCommit(KvFormat::Sixteen) => wgsl!("kv_commit.wgsl"),
            Self::KvCommit(KvFormat::Int8) => wgsl!("variants/kv_commit_int8.wgsl"),
            Self::AttentionPrefill(_) => wgsl!("attention_prefill.wgsl"),
            Self::AttentionDecode(_) => wgsl!("attention_decode.wgsl"),
            Self::MergeLse { .. } => wgsl!("merge_lse.wgsl"),
            Self::Swiglu => wgsl!("swiglu.wgsl"),
            Self::ArgmaxParts => wgsl!("variants/argmax_parts.wgsl"),
            Self::Argmax => wgsl!("argmax.wgsl"),
            Self::Sample => wgsl!("sample.wgsl"),
        }
    }

    /// The whole source within WebGPU's defaults for a model's heads. Check the shape first ([`HeadShape::check`]).
    pub fn source(self, shape: HeadShape) -> String {
        self.source_in(shape, Dialect::BASE)
    }

    /// The same with what the device has beyond the defaults.
    pub fn source_in(self, shape: HeadShape, dialect: Dialect) -> String {
        self.source_with(shape, dialect, None)
    }

    /// The struct of `params`, where they may be constants.
    pub(crate) fn params(self) -> Option<abi::StructLayout> {
        match self {
            Self::Embedding(_) | Self::Project { .. } => Some(ProjectParams::LAYOUT),
            Self::Qkv { .. } => Some(QkvParams::LAYOUT),
            Self::GateUp { .. } => Some(GateUpParams::LAYOUT),
            _ => None,
        }
    }

    /// The same with the kernel's `params` as constants, from the bytes of their struct, so that nothing waits for them:
    /// for [`Kernel::Project`], [`Kernel::Qkv`] and [`Kernel::GateUp`].
    pub fn source_with(self, shape: HeadShape, dialect: Dialect, params: Option<&[u8]>) -> String {
        let variant = dialect.of(self, shape);
        let mut text = dialect.header(self, variant);
        text.push_str(&abi::wgsl_prelude());
        text.push_str(&constants(self, shape));
        if let Some(layout) = self.params() {
            declare(&mut text, layout, params);
        }
        for part in self.shared(shape, variant) {
            text.push('\n');
            text.push_str(part);
        }
        text.push('\n');
        text.push_str(self.body(variant.products));
        text
    }

    /// Stem and variant, and what is used beyond the defaults.
    pub fn label_in(self, shape: HeadShape, dialect: Dialect) -> String {
        if cfg!(target_arch = "wasm32") {
            return self.label();
        }
        match dialect.of(self, shape) {
            Variant::BASE => self.label(),
            variant => format!("{}.{variant}", self.label()),
        }
    }
}

/// A kernel's `params`: a uniform buffer, or a constant with these bytes.
fn declare(text: &mut String, layout: abi::StructLayout, params: Option<&[u8]>) {
    let Some(bytes) = params else {
        *text += "@group(0) @binding(0) var<uniform> params: ";
        *text += layout.name;
        *text += ";\n";
        return;
    };
    let _ = write!(text, "const params = {}(", layout.name);
    debug_assert_eq!(
        bytes.len(),
        layout.bytes,
        "fields lie word by word: a test of abi"
    );
    for ((_, kind, _), word) in layout.fields.iter().zip(bytes.chunks_exact(4)) {
        let word = word
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte));
        let _ = if *kind == "f32" {
            write!(text, "{:?},", f32::from_bits(word))
        } else {
            write!(text, "{word}u,")
        };
    }
    *text += ");\n";
}

fn constants(kernel: Kernel, shape: HeadShape) -> String {
    let mut text = String::from("// The model's heads, and this variant.\n");
    for (name, value) in [
        ("HEADS", shape.heads),
        ("KV_HEADS", shape.kv_heads),
        ("HEAD_DIM", shape.head_dim),
        ("GQA_GROUP", shape.gqa_group()),
        ("HEADS_PER_ITEM", shape.heads_per_item()),
        ("ITEMS_PER_PART", shape.items_per_part()),
        ("MOST_ITEMS", WorkList::MOST_ITEMS),
        ("DECODE_ROUND", shape.decode_round()),
        ("MERGE_CHANNELS", shape.merge_channels()),
        ("ARGMAX_PARTS", crate::ARGMAX_PARTS),
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
    if let Kernel::Project {
        lanes,
        inputs,
        weight,
        ..
    }
    | Kernel::Qkv {
        lanes,
        inputs,
        weight,
        ..
    }
    | Kernel::GateUp {
        lanes,
        inputs,
        weight,
        ..
    } = kernel
    {
        let _ = writeln!(text, "const THREADS: u32 = {}u;", lanes.threads());
        let _ = writeln!(text, "const LANES: u32 = {}u;", lanes.lanes());
        let _ = writeln!(text, "const SET_ROWS: u32 = {}u;", lanes.set_rows());
        let outputs = match kernel {
            Kernel::GateUp { .. } => lanes.rows() / 2,
            _ => lanes.rows(),
        };
        let _ = writeln!(text, "const OUTPUTS: u32 = {outputs}u;");
        // Whether each set finds the root of a norm by itself, or the whole workgroup together.
        let _ = writeln!(text, "const OF_CODES: bool = {};", inputs.are_codes());
        if inputs.are_codes() {
            let normed = inputs == Inputs::NormedCodes;
            let _ = writeln!(text, "const NORM: bool = {normed};");
            let plane = if weight == WeightType::Q8 { 2 } else { 0 };
            let _ = writeln!(text, "const BYTES: u32 = {plane}u;");
        }
        text.push_str(row_sums(lanes));
    }
    if let Kernel::MergeLse { .. } = kernel {
        let _ = writeln!(text, "const OUTPUTS: u32 = {}u;", shape.merge_channels());
    }
    text
}

/// The sums of a set's rows, as narrow as they are, and to and from four of them.
const fn row_sums(lanes: Lanes) -> &'static str {
    match lanes.set_rows() {
        1 => {
            "alias RowSums = f32;
fn own_rows(all: vec4<f32>) -> f32 { return all.x; }
fn all_rows(own: f32) -> vec4<f32> { return vec4<f32>(own); }
"
        }
        2 => {
            "alias RowSums = vec2<f32>;
fn own_rows(all: vec4<f32>) -> vec2<f32> { return all.xy; }
fn all_rows(own: vec2<f32>) -> vec4<f32> { return own.xyxy; }
"
        }
        _ => {
            "alias RowSums = vec4<f32>;
fn own_rows(all: vec4<f32>) -> vec4<f32> { return all; }
fn all_rows(own: vec4<f32>) -> vec4<f32> { return own; }
"
        }
    }
}
