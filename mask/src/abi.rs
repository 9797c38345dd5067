//! Constants and structs that host and kernels share, written once: Rust item, WGSL text and CUDA text.
//!
//! Only `u32` and `f32` fields, each struct padded to 16 bytes, so that the layouts of WGSL's uniform and
//! storage address spaces, of C and of Rust agree; tests on each side check sizes and offsets all the same.

/// Declares constants that kernels see under the same name.
macro_rules! abi_consts {
    ($($(#[doc = $doc:literal])* $name:ident = $value:expr;)*) => {
        $($(#[doc = $doc])* pub const $name: u32 = $value;)*
        const CONSTS: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
}

/// Declares a `#[repr(C)]` struct of `u32` and `f32` fields.
macro_rules! abi_struct {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $fdoc:literal])* $field:ident: $ty:ident,)* }) => {
        $(#[doc = $doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[doc = $fdoc])* pub $field: $ty,)* }
        impl $name {
            /// Name and fields `(name, type, byte offset)`, for preludes and layout checks.
            pub const LAYOUT: StructLayout = StructLayout {
                name: stringify!($name),
                bytes: size_of::<Self>(),
                fields: &[$((stringify!($field), stringify!($ty), std::mem::offset_of!(Self, $field))),*],
            };
        }
    };
}

/// A struct as kernels must see it.
#[derive(Debug, Clone, Copy)]
pub struct StructLayout {
    /// The struct's name, the same in every language.
    pub name: &'static str,
    /// Size in bytes, a multiple of 16.
    pub bytes: usize,
    /// `(name, Rust type, byte offset)` of each field.
    pub fields: &'static [(&'static str, &'static str, usize)],
}

abi_consts! {
    /// Weights that share one scale, along the input dimension.
    QUANT_GROUP = 32;
    /// Inputs of a product that share one scale where they come as codes.
    CODE_GROUP = 8;
    /// Groups of [`QUANT_GROUP`] columns whose codes lie together, plane by plane, so that neighboring threads read
    /// neighboring vectors.
    CODE_TILE = 32;
    /// Planes of such a tile, of a vector of four words a group: bytes in the order of q4 weights (two planes), in that of q8
    /// weights (two), and for each [`CODE_GROUP`] step and sum in one word, and the sum of squares before a norm.
    CODE_PLANES = 6;
    /// Tokens that may be taken back exactly.
    KV_SLACK = crate::SLACK;
    /// Keys that one workgroup of decode attention serves at most.
    DECODE_KEYS = 128;
    /// Unit of the places that fused kernels get: what every part of a weight file is aligned to.
    PLACE_BYTES = 256;
    /// Weight of the likeliest token in sampling: weights are whole numbers, so that sums do not depend on their order.
    WEIGHT_ONE = 1 << 26;
    /// Tokens that end a text on the device, at most.
    MAX_STOPS = 15;
    /// In the counts of tokens: the token is in the prompt. The bits below count how often it was generated.
    IN_PROMPT = 1 << 31;
}

/// Bytes of the codes of so many columns.
pub const fn code_bytes(cols: u32) -> u64 {
    let tiles = cols.div_ceil(QUANT_GROUP * CODE_TILE);
    16 * CODE_TILE as u64 * CODE_PLANES as u64 * tiles as u64
}

abi_struct! {
    /// What one KV head sees and where its slots lie in its layer's K and V buffers.
    HeadSpan {
        /// Sink slots, never more than the context.
        sink: u32,
        /// Window in tokens, the current key counted.
        window: u32,
        /// Ring slots.
        ring: u32,
        /// First slot of the head in the layer's buffers.
        slot_offset: u32,
    }
}

abi_struct! {
    /// What is in flight: written by the host before a prefill chunk, advanced on the GPU between decoded tokens.
    StepState {
        /// Position of the first token in flight: tokens that are in the cache already.
        start: u32,
        /// Tokens in flight.
        len: u32,
        /// Tokens chosen since the batch began: index of the next one in the list of ids.
        step: u32,
        /// 1 once a token that ends the text was chosen: nothing is chosen or computed any more.
        stopped: u32,
    }
}

abi_struct! {
    /// A piece of a weight matrix: rows `[row_offset, row_offset + rows)` of it.
    PieceParams {
        /// Rows of the piece.
        rows: u32,
        /// Columns: the input dimension.
        cols: u32,
        /// First row of the piece in the whole matrix.
        row_offset: u32,
        /// Values from one token's output to the next one's.
        y_stride: u32,
    }
}

abi_struct! {
    /// A kernel that works token by token on rows of `dim` values.
    RowParams {
        /// Values in a row.
        dim: u32,
        /// Added to the mean square under the root.
        eps: f32,
        /// 1: only the last token in flight, written to row 0; 0: all of them, each to its own row.
        last_only: u32,
        /// Padding.
        reserved: u32,
    }
}

abi_struct! {
    /// `project`: the pieces of one weight matrix that lie in one binding. Places (`_at`) count
    /// [`PLACE_BYTES`] from the binding's start.
    ProjectParams {
        /// Rows of all pieces.
        rows: u32,
        /// Columns: the input dimension.
        cols: u32,
        /// First row in the whole matrix: where the output goes.
        row_offset: u32,
        /// Rows of every piece but the last.
        piece_rows: u32,
        /// From one piece to the next.
        piece_step: u32,
        /// From a piece's start to its scales.
        scales_step: u32,
        /// The same for the last piece.
        last_scales_step: u32,
        /// Added to the mean square under the root.
        eps: f32,
    }
}

abi_struct! {
    /// `qkv`: where the layer's query, key and value matrices lie; places as in `ProjectParams`.
    QkvParams {
        /// Queries: values.
        q_at: u32,
        /// Queries: scales.
        q_scales_at: u32,
        /// Queries: bias.
        q_bias_at: u32,
        /// Keys: values.
        k_at: u32,
        /// Keys: scales.
        k_scales_at: u32,
        /// Keys: bias.
        k_bias_at: u32,
        /// Values: values.
        v_at: u32,
        /// Values: scales.
        v_scales_at: u32,
        /// Values: bias.
        v_bias_at: u32,
        /// The norm's weights.
        norm_at: u32,
        /// Columns: the input dimension.
        cols: u32,
        /// Added to the mean square under the root.
        eps: f32,
        /// First quad (two neighboring channels and their partners half a head away) of this dispatch.
        first_quad: u32,
        /// Quads of this dispatch.
        quads: u32,
        /// Padding.
        reserved_0: u32,
        /// Padding.
        reserved_1: u32,
    }
}

abi_struct! {
    /// `gate_up`: a piece of each matrix with the same rows; places as in `ProjectParams`.
    GateUpParams {
        /// Gate: values.
        gate_at: u32,
        /// Gate: scales.
        gate_scales_at: u32,
        /// Up: values.
        up_at: u32,
        /// Up: scales.
        up_scales_at: u32,
        /// The norm's weights.
        norm_at: u32,
        /// Columns: the input dimension.
        cols: u32,
        /// Added to the mean square under the root.
        eps: f32,
        /// Rows of the pieces.
        rows: u32,
        /// First row in the whole matrices: where the output goes.
        row_offset: u32,
        /// Padding.
        reserved_0: u32,
        /// Padding.
        reserved_1: u32,
        /// Padding.
        reserved_2: u32,
    }
}

abi_struct! {
    /// How the next token is chosen.
    SampleParams {
        /// Logits.
        dim: u32,
        /// Keeps the k largest; 0 keeps all.
        top_k: u32,
        /// Keeps the largest until they hold this part of the mass, in parts of 2^32; the largest u32 keeps all.
        top_p: u32,
        /// Smallest weight that is kept; the largest logit's weight is [`WEIGHT_ONE`].
        min_weight: u32,
        /// 1 / temperature; 0 chooses the largest.
        inverse_temperature: f32,
        /// Seed of the draws, low word.
        seed_low: u32,
        /// High word.
        seed_high: u32,
        /// 1: penalties count.
        penalize: u32,
        /// Divides positive logits of tokens that are in the text, multiplies negative ones.
        repetition: f32,
        /// Taken off the logits of generated tokens.
        presence: f32,
        /// Taken off for each time that they were generated.
        frequency: f32,
        /// Padding.
        reserved: u32,
    }
}

abi_struct! {
    /// One block's share of decode attention on CUDA: an even part of the keys that its KV head sees.
    DecodeItem {
        /// The KV head whose keys are read.
        kv_head: u32,
        /// First query head served.
        first_head: u32,
        /// Which part of the head's visible keys.
        part: u32,
        /// Into how many parts they are cut.
        parts: u32,
    }
}

abi_struct! {
    /// One workgroup's share of decode attention in WGSL, in one load with what its KV head sees.
    SpanPart {
        /// As in `HeadSpan`.
        sink: u32,
        /// As in `HeadSpan`.
        window: u32,
        /// As in `HeadSpan`.
        ring: u32,
        /// As in `HeadSpan`.
        slot_offset: u32,
        /// First query head served.
        first_head: u32,
        /// Which part of the visible keys.
        part: u32,
        /// Into how many parts they are cut.
        parts: u32,
        /// Where the KV head's partial results of part 0 would be, did they not lie by query head at the beginning; those of
        /// every other part are so many rows further as the group has heads. A partial is `head_dim` values, `row_max` and
        /// `row_sum`.
        first_row: u32,
    }
}

abi_struct! {
    /// A request's share of a prefill chunk: queries and their own keys, behind keys that are cached already.
    PrefillRun {
        /// First row of its queries in the packed tensor.
        q_row: u32,
        /// Position of its first query.
        q_start: u32,
        /// Its queries; the keys end where they end.
        q_len: u32,
        /// First row of its fresh keys in their packed tensor.
        k_row: u32,
        /// Position of the first fresh key: those before it are cached.
        k_start: u32,
        /// Padding.
        reserved_0: u32,
        /// Padding.
        reserved_1: u32,
        /// Padding.
        reserved_2: u32,
    }
}

abi_struct! {
    /// One block's share of prefill attention: some tiles of 64 queries of the heads of a group.
    PrefillItem {
        /// Which request's run.
        request: u32,
        /// The KV head whose keys are read.
        kv_head: u32,
        /// First tile: tiles of queries are counted by position, then by head of the group.
        first: u32,
        /// Padding.
        reserved: u32,
    }
}

/// Every struct that WGSL kernels share with the host, and CUDA kernels may.
pub const STRUCTS: &[StructLayout] = &[
    HeadSpan::LAYOUT,
    StepState::LAYOUT,
    PieceParams::LAYOUT,
    RowParams::LAYOUT,
    ProjectParams::LAYOUT,
    QkvParams::LAYOUT,
    GateUpParams::LAYOUT,
    SampleParams::LAYOUT,
    SpanPart::LAYOUT,
];

/// Structs that only CUDA kernels share with it.
const CUDA_STRUCTS: &[StructLayout] =
    &[DecodeItem::LAYOUT, PrefillRun::LAYOUT, PrefillItem::LAYOUT];

/// The prelude that begins every WGSL source.
pub fn wgsl_prelude() -> String {
    let mut text = String::from("// Generated from mask/src/abi.rs.\n");
    for (name, value) in CONSTS {
        text += &format!("const {name}: u32 = {value}u;\n");
    }
    for layout in STRUCTS {
        text += &format!("struct {} {{\n", layout.name);
        for (field, ty, _) in layout.fields {
            text += &format!("    {field}: {ty},\n");
        }
        text += "}\n";
    }
    text
}

/// The prelude that begins every CUDA source; it ends with checks that NVRTC itself makes.
pub fn cuda_prelude() -> String {
    let mut text = String::from("// Generated from mask/src/abi.rs.\n");
    for (name, value) in CONSTS {
        text += &format!("#define {name} {value}u\n");
    }
    for layout in STRUCTS.iter().chain(CUDA_STRUCTS) {
        text += &format!("struct {} {{\n", layout.name);
        for (field, ty, _) in layout.fields {
            let c_type = if *ty == "f32" {
                "float"
            } else {
                "unsigned int"
            };
            text += &format!("    {c_type} {field};\n");
        }
        text += &format!(
            "}};\nstatic_assert(sizeof({}) == {}, \"layout\");\n",
            layout.name, layout.bytes
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_padded_to_sixteen_bytes() {
        for layout in STRUCTS.iter().chain(CUDA_STRUCTS) {
            assert_eq!(layout.bytes % 16, 0, "{}", layout.name);
            for (index, (field, _, offset)) in layout.fields.iter().enumerate() {
                assert_eq!(
                    *offset,
                    index * 4,
                    "{}.{field}: no hidden padding",
                    layout.name
                );
            }
            assert_eq!(layout.fields.len() * 4, layout.bytes, "{}", layout.name);
        }
    }

    #[test]
    fn preludes_are_as_reviewed() {
        insta::assert_snapshot!("prelude_wgsl", wgsl_prelude());
        insta::assert_snapshot!("prelude_cuda", cuda_prelude());
    }
}
