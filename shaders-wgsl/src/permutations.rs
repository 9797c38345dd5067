//! Every kernel in every variant that a program may have: what naga and Tint see.

use moa_mask::KvFormat;

use crate::variant::{Compiler, Dialect, Variant};
use crate::{HeadShape, Inputs, Kernel, KvTarget, Lanes, MatmulThreads, VectorType, WeightType};

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
        Kernel::MergeLse { codes: false },
        Kernel::MergeLse { codes: true },
        Kernel::Swiglu,
        Kernel::ArgmaxParts,
        Kernel::Argmax,
        Kernel::Sample,
    ]);
    list
}

/// The dialects beyond the base in which a kernel is checked: each that changes its source, with subgroups of 4 and of 32
/// threads at least.
pub fn dialects(kernel: Kernel, shape: HeadShape, compiler: Compiler) -> Vec<Dialect> {
    let mut list: Vec<Dialect> = Vec::new();
    for subgroup in [4, 32] {
        for variant in Variant::all() {
            let dialect = Dialect {
                variant,
                subgroup,
                compiler,
            };
            // Each choice by itself, and what its source is for once.
            let used = dialect.of(kernel, shape);
            let known = |other: &Dialect| other.of(kernel, shape) == used && !used.subgroups;
            if used != Variant::BASE && used == variant && !list.iter().any(known) {
                list.push(dialect);
            }
        }
    }
    list
}

/// The kernels whose sources differ between models: what other shapes than the first are checked with. Of the many
/// variants of `qkv` two a weight type, for the rest of it is the same for every shape.
pub fn head_permutations() -> Vec<Kernel> {
    let of_every_shape = |kernel: &Kernel| match kernel {
        Kernel::Qkv {
            inputs,
            bias,
            lanes,
            ..
        } => {
            let kind = VectorType::F16;
            *bias == Some(kind)
                && [
                    (Inputs::Norm(kind), Lanes::L32),
                    (Inputs::NormedCodes, Lanes::L32One),
                ]
                .contains(&(*inputs, *lanes))
        }
        _ => kernel.depends_on_heads(),
    };
    permutations().into_iter().filter(of_every_shape).collect()
}

/// The fused kernels of a weight type. The variants that a model mixes freely (how work is shared, how norms and
/// biases are stored) are all there; those that differ in one word of the source only are not multiplied further.
fn fused(weight: WeightType) -> Vec<Kernel> {
    let project = |inputs, add, lanes| Kernel::Project {
        weight,
        inputs,
        add,
        leaves: None,
        lanes,
    };
    let mut list = [true, false]
        .map(|add| project(Inputs::Plain, add, Lanes::L64Two))
        .to_vec();
    if weight.has_scales() {
        list.extend(of_codes(weight));
    }
    for lanes in Lanes::ALL {
        for (inputs, add) in [
            (Inputs::Plain, true),
            (Inputs::Plain, false),
            (Inputs::Norm(VectorType::F16), false),
            (Inputs::Norm(VectorType::F32), false),
        ] {
            list.push(project(inputs, add, lanes));
        }
        for norm in VectorType::ALL {
            let inputs = Inputs::Norm(norm);
            list.push(Kernel::GateUp {
                weight,
                inputs,
                codes: false,
                lanes,
            });
            for bias in [None, Some(norm)] {
                list.push(Kernel::Qkv {
                    weight,
                    inputs,
                    bias,
                    lanes,
                });
            }
        }
    }
    list
}

/// Those that take codes in or leave them.
fn of_codes(weight: WeightType) -> Vec<Kernel> {
    let project = |inputs, add, leaves, lanes| Kernel::Project {
        weight,
        inputs,
        add,
        leaves,
        lanes,
    };
    let gate_up = |inputs, codes, lanes| Kernel::GateUp {
        weight,
        inputs,
        codes,
        lanes,
    };
    let mut list = vec![
        project(Inputs::Codes, true, None, Lanes::L32One),
        project(Inputs::Codes, true, None, Lanes::L64One),
        project(Inputs::NormedCodes, false, None, Lanes::L64One),
        project(Inputs::NormedCodes, false, None, Lanes::L32One),
        project(Inputs::NormedCodes, false, None, Lanes::L16),
        gate_up(Inputs::Norm(VectorType::F16), true, Lanes::L16),
        gate_up(Inputs::Norm(VectorType::F32), true, Lanes::L32),
        gate_up(Inputs::Norm(VectorType::F32), true, Lanes::L64),
        gate_up(Inputs::NormedCodes, true, Lanes::L32Two),
        gate_up(Inputs::NormedCodes, true, Lanes::L32),
        gate_up(Inputs::NormedCodes, false, Lanes::L32Two),
        gate_up(Inputs::NormedCodes, false, Lanes::L32),
    ];
    for leaves in VectorType::ALL.map(Some) {
        for lanes in [Lanes::L32One, Lanes::L64Wide] {
            list.push(project(Inputs::Codes, true, leaves, lanes));
        }
    }
    for bias in [None, Some(VectorType::F16), Some(VectorType::F32)] {
        for lanes in [Lanes::L32One, Lanes::L64One] {
            list.push(Kernel::Qkv {
                weight,
                inputs: Inputs::NormedCodes,
                bias,
                lanes,
            });
        }
    }
    list
}

/// Constants as a program may have them, for kernels whose `params` become part of their source.
pub fn plausible_params(kernel: Kernel) -> Option<Vec<u8>> {
    let value = |field: &str| match field {
        "cols" => 2080,
        "rows" | "piece_rows" | "quads" => 64,
        "eps" => 1e-5f32.to_bits(),
        _ => 3,
    };
    kernel.params().map(|layout| {
        let fields = layout.fields.iter();
        fields
            .flat_map(|(field, ..)| value(field).to_le_bytes())
            .collect()
    })
}
