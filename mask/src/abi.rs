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
    /// Tokens that may be taken back exactly.
    KV_SLACK = crate::SLACK;
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

/// Every struct that kernels share with the host.
pub const STRUCTS: &[StructLayout] = &[HeadSpan::LAYOUT];

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
    for layout in STRUCTS {
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
        for layout in STRUCTS {
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
