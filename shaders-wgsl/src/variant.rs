//! What sources may use beyond WebGPU's defaults, where a device has it: exchange within subgroups, arithmetic in f16,
//! products of packed bytes. Whether they gain anything is the device's affair: whoever runs them measures.

use std::fmt;
use std::str::FromStr;

use crate::{HeadShape, Kernel, MatmulThreads};

/// How the products of a chunk with quantized weights are summed within a group of 32 columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Products {
    /// In f32.
    #[default]
    F32,
    /// In f16, inputs as parts of their group's largest. Needs `shader-f16`.
    F16,
    /// Exactly, inputs rounded to bytes. Needs `packed_4x8_integer_dot_product`.
    Dp4a,
}

impl Products {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Dp4a];

    /// The name in labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Dp4a => "dp4a",
        }
    }
}

/// Which of a device's extras the kernels use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    /// Whether reductions go through subgroups.
    pub subgroups: bool,
    /// The products of prefill.
    pub products: Products,
    /// Whether decode multiplies quantized weights with inputs rounded to bytes. Needs
    /// `packed_4x8_integer_dot_product`.
    pub packed: bool,
}

/// A name that is no variant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariantError(pub String);

impl fmt::Display for VariantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}`: expected base, or some of subgroups, one of f16 and dp4a, and packed, joined by + in this order",
            self.0
        )
    }
}

impl std::error::Error for VariantError {}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.subgroups, "subgroups"),
            (self.products != Products::F32, self.products.name()),
            (self.packed, "packed"),
        ];
        let used: Vec<&str> = parts
            .into_iter()
            .filter_map(|(used, name)| used.then_some(name))
            .collect();
        f.write_str(
            if used.is_empty() {
                "base".to_owned()
            } else {
                used.join("+")
            }
            .as_str(),
        )
    }
}

impl FromStr for Variant {
    type Err = VariantError;

    fn from_str(text: &str) -> Result<Self, VariantError> {
        Self::all()
            .find(|variant| variant.to_string() == text)
            .ok_or_else(|| VariantError(text.to_owned()))
    }
}

impl Variant {
    /// WebGPU's defaults and nothing else.
    pub const BASE: Self = Self {
        subgroups: false,
        products: Products::F32,
        packed: false,
    };

    /// Every variant.
    pub fn all() -> impl Iterator<Item = Self> {
        let flags = [(false, false), (true, false), (false, true), (true, true)];
        flags.into_iter().flat_map(|(subgroups, packed)| {
            Products::ALL.map(|products| Self {
                subgroups,
                products,
                packed,
            })
        })
    }
}

/// Who compiles a source: WGSL's extensions are switched on differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiler {
    /// naga, natively: subgroups need no word, and it refuses the one that browsers ask for.
    Naga,
    /// A browser's own.
    Browser,
}

impl Compiler {
    /// The one that this crate is built for.
    pub const HERE: Self = if cfg!(target_arch = "wasm32") {
        Self::Browser
    } else {
        Self::Naga
    };
}

/// A variant on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// What is used.
    pub variant: Variant,
    /// Neighboring threads that surely share a subgroup: the smallest size that the device's subgroups have, a power of
    /// two. Larger ones do no harm.
    pub subgroup: u32,
    /// Who compiles.
    pub compiler: Compiler,
}

impl Dialect {
    /// WebGPU's defaults.
    pub const BASE: Self = Self {
        variant: Variant::BASE,
        subgroup: 1,
        compiler: Compiler::HERE,
    };

    /// What of the variant changes this kernel's source.
    pub fn of(self, kernel: Kernel, shape: HeadShape) -> Variant {
        let reduces = match kernel {
            Kernel::Project { .. }
            | Kernel::Qkv { .. }
            | Kernel::GateUp { .. }
            | Kernel::RmsNorm(_)
            | Kernel::ArgmaxParts
            | Kernel::Argmax
            | Kernel::Sample => true,
            // A lane's threads exchange their shares; fewer than four have nothing to gain.
            Kernel::AttentionDecode(_) => {
                let threads = shape.head_dim / 8;
                threads.is_power_of_two() && (4..=self.subgroup).contains(&threads)
            }
            _ => false,
        };
        let multiplies = match kernel {
            Kernel::Matmul {
                weight, threads, ..
            } => weight.has_scales() && threads != MatmulThreads::Narrow,
            _ => false,
        };
        Variant {
            subgroups: self.variant.subgroups && reduces,
            products: if multiplies {
                self.variant.products
            } else {
                Products::F32
            },
            // Which inputs are codes is the program's choice, not the source's.
            packed: false,
        }
    }

    /// What a source that uses this begins with.
    pub(crate) fn header(self, kernel: Kernel, used: Variant) -> String {
        let mut text = String::new();
        if used.products == Products::F16 {
            text.push_str("enable f16;\n");
        }
        if used.subgroups {
            if self.compiler == Compiler::Browser {
                text.push_str("enable subgroups;\n");
                // All threads of a subgroup branch alike on what `subgroupAny` says, which browsers do not find out.
                if matches!(kernel, Kernel::AttentionDecode(_)) {
                    text.push_str("diagnostic(off, subgroup_uniformity);\n");
                }
            }
            text.push_str(&format!("const SUBGROUP: u32 = {}u;\n", self.subgroup));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_have_names() {
        for variant in Variant::all() {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
        assert_eq!(Variant::all().count(), 12);
        assert_eq!(Variant::BASE.to_string(), "base");
        assert!("f16+dp4a".parse::<Variant>().is_err());
        assert_eq!("base".parse(), Ok(Variant::BASE));
    }
}
