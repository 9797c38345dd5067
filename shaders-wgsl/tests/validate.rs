//! Every kernel in every variant through naga, with the capabilities that a browser gives by default, its bindings
//! against what `Kernel::bindings` promises, and its structs against Rust's layout.

use std::collections::BTreeSet;
use std::path::Path;

use moa_mask::abi;
#[path = "../build.rs"]
#[expect(
    dead_code,
    clippy::print_stdout,
    reason = "its main is for cargo, and talks to it"
)]
mod build;

use moa_shaders::{
    Access, CHECKED_SHAPES, Compiler, Dialect, ENTRY_POINT, HeadShape, Kernel, Lanes, Products,
    WIDE_WORKGROUP, dialects, permutations, plausible_params,
};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// What every WebGPU device has: naga counts pack2x16float and unpack2x16float as a capability, WGSL does not.
const CAPABILITIES: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// WebGPU's default limits.
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_WORKGROUP_BYTES: u32 = 16 * 1024;
const MAX_INVOCATIONS: u32 = 256;

fn validate(source: &str) -> Result<naga::Module, String> {
    validate_with(source, CAPABILITIES)
}

fn validate_with(source: &str, capabilities: Capabilities) -> Result<naga::Module, String> {
    let module =
        naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))?;
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|error| error.emit_to_string(source))?;
    Ok(module)
}

fn everything() -> impl Iterator<Item = (Kernel, HeadShape)> {
    CHECKED_SHAPES
        .into_iter()
        .enumerate()
        .flat_map(|(index, shape)| {
            permutations()
                .into_iter()
                .filter(move |kernel| index == 0 || kernel.depends_on_heads())
                .map(move |kernel| (kernel, shape))
        })
}

#[test]
fn every_variant_is_valid_with_default_capabilities() {
    for (kernel, shape) in everything() {
        shape.check().expect("a shape that the kernels serve");
        let source = kernel.source(shape);
        if let Err(error) = validate(&source) {
            panic!("{} for {shape:?}:\n{error}", kernel.label());
        }
    }
}

#[test]
fn kernels_are_valid_with_their_constants_in_the_source() {
    let mut seen = 0;
    for (kernel, shape) in everything() {
        let Some(params) = plausible_params(kernel) else {
            continue;
        };
        let source = kernel.source_with(shape, Dialect::BASE, Some(&params));
        assert!(!source.contains("var<uniform> params") && source.contains("const params = "));
        if let Err(error) = validate(&source) {
            panic!("{} for {shape:?}:\n{error}", kernel.label());
        }
        seen += 1;
    }
    assert!(seen > 100, "only {seen} sources");
}

#[test]
fn bindings_are_as_promised() {
    for (kernel, shape) in everything() {
        let module = validate(&kernel.source(shape)).expect("checked above");
        let mut found: Vec<(u32, String, Access)> = module
            .global_variables
            .iter()
            .filter_map(|(_, global)| {
                let binding = global.binding.as_ref()?;
                assert_eq!(binding.group, 0, "{}", kernel.label());
                let access = match global.space {
                    naga::AddressSpace::Uniform => Access::Uniform,
                    naga::AddressSpace::Storage { access }
                        if access.contains(naga::StorageAccess::STORE) =>
                    {
                        Access::ReadWrite
                    }
                    naga::AddressSpace::Storage { .. } => Access::Read,
                    other => panic!("{}: {other:?}", kernel.label()),
                };
                Some((
                    binding.binding,
                    global.name.clone().unwrap_or_default(),
                    access,
                ))
            })
            .collect();
        found.sort_by_key(|(index, ..)| *index);
        let promised: Vec<_> = kernel
            .bindings()
            .into_iter()
            .map(|binding| (binding.index, binding.name.to_owned(), binding.access))
            .collect();
        assert_eq!(found, promised, "{}", kernel.label());
    }
}

fn workgroup_bytes(module: &naga::Module) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("a valid module");
    module
        .global_variables
        .iter()
        .filter(|(_, global)| global.space == naga::AddressSpace::WorkGroup)
        .map(|(_, global)| layouter[global.ty].size.next_multiple_of(16))
        .sum()
}

#[test]
fn default_limits_hold() {
    for (kernel, shape) in everything() {
        let module = validate(&kernel.source(shape)).expect("checked above");
        let storage = kernel
            .bindings()
            .iter()
            .filter(|binding| binding.access != Access::Uniform)
            .count();
        assert!(
            storage <= MAX_STORAGE_BUFFERS,
            "{}: {storage} storage buffers",
            kernel.label()
        );
        let bytes = workgroup_bytes(&module);
        assert!(
            bytes <= MAX_WORKGROUP_BYTES,
            "{} for {shape:?}: {bytes} bytes",
            kernel.label()
        );
        let entry = &module.entry_points[0];
        assert_eq!(entry.name, ENTRY_POINT);
        assert_eq!(
            entry.workgroup_size,
            [kernel.workgroup_size(), 1, 1],
            "{}",
            kernel.label()
        );
        let wide = matches!(
            kernel,
            Kernel::Project {
                lanes: Lanes::L64Wide,
                ..
            }
        );
        let most = if wide {
            WIDE_WORKGROUP
        } else {
            MAX_INVOCATIONS
        };
        assert!(kernel.workgroup_size() <= most);
    }
}

#[test]
fn variants_are_valid_with_what_they_say_they_need() {
    let mut checked = 0;
    for (kernel, shape) in everything() {
        for dialect in dialects(kernel, shape, Compiler::Naga) {
            let used = dialect.of(kernel, shape);
            let label = kernel.label_in(shape, dialect);
            // With its constants where it has some, as a program has it.
            let params = plausible_params(kernel);
            let source = kernel.source_with(shape, dialect, params.as_deref());
            let mut needed = CAPABILITIES;
            needed.set(Capabilities::SUBGROUP, used.subgroups);
            needed.set(Capabilities::SHADER_FLOAT16, used.products == Products::F16);
            let module = match validate_with(&source, needed) {
                Ok(module) => module,
                Err(error) => panic!("{label} for {shape:?}:\n{error}"),
            };
            let bytes = workgroup_bytes(&module);
            assert!(bytes <= MAX_WORKGROUP_BYTES, "{label}: {bytes} bytes");
            assert_eq!(
                validate(&source).is_ok(),
                needed == CAPABILITIES,
                "{label}: needs what it says and no less"
            );
            checked += 1;
        }
    }
    assert!(checked > 300, "{checked} variants");
}

#[test]
fn structs_have_the_layout_of_rust() {
    // A kernel that names every struct, so that none is left out of the module.
    let mut source = abi::wgsl_prelude();
    for (index, layout) in abi::STRUCTS.iter().enumerate() {
        source += &format!(
            "@group(0) @binding({index}) var<storage, read> s{index}: array<{}>;\n",
            layout.name
        );
    }
    source += "@compute @workgroup_size(1) fn main() {}\n";
    let module = validate(&source).expect("the prelude is valid");
    for layout in abi::STRUCTS {
        let found = module
            .types
            .iter()
            .find(|(_, ty)| ty.name.as_deref() == Some(layout.name))
            .unwrap_or_else(|| panic!("{} is not in the prelude", layout.name));
        let naga::TypeInner::Struct { members, span } = &found.1.inner else {
            panic!("{} is no struct", layout.name);
        };
        assert_eq!(*span as usize, layout.bytes, "{}", layout.name);
        let offsets: Vec<(String, usize)> = members
            .iter()
            .map(|member| {
                (
                    member.name.clone().unwrap_or_default(),
                    member.offset as usize,
                )
            })
            .collect();
        let expected: Vec<(String, usize)> = layout
            .fields
            .iter()
            .map(|(name, _, offset)| ((*name).to_owned(), *offset))
            .collect();
        assert_eq!(offsets, expected, "{}", layout.name);
    }
}

#[test]
fn a_broken_kernel_is_refused() {
    let shape = CHECKED_SHAPES[0];
    let good = Kernel::Swiglu.source(shape);
    assert!(validate(&good).is_ok());
    assert!(
        validate(&good.replacen("exp(", "expp(", 1)).is_err(),
        "the validator must be able to fail"
    );
    let subgroup = good.replacen("exp(min(-value", "exp(subgroupAdd(-value", 1);
    assert!(
        validate(&subgroup).is_err(),
        "a feature beyond the defaults must be refused"
    );
}

#[test]
fn only_kernels_of_heads_depend_on_them() {
    let body = |source: &str| source[source.find("const UNSEEN").expect("there")..].to_owned();
    for kernel in permutations() {
        let sources = CHECKED_SHAPES.map(|shape| kernel.source(shape));
        let uses = ["HEADS", "HEAD_DIM", "GQA_GROUP", "SOFTMAX_SCALE"]
            .iter()
            .any(|word| body(&sources[0]).contains(word));
        assert_eq!(uses, kernel.depends_on_heads(), "{}", kernel.label());
    }
}

#[test]
fn shapes_that_no_kernel_serves_are_refused() {
    for (heads, kv_heads, head_dim) in [(9, 2, 64), (8, 0, 64), (8, 8, 12), (8, 8, 264), (0, 1, 64)]
    {
        assert!(
            HeadShape {
                heads,
                kv_heads,
                head_dim
            }
            .check()
            .is_err(),
            "{heads} {kv_heads} {head_dim}"
        );
    }
    let served = |heads, kv_heads, head_dim| {
        HeadShape {
            heads,
            kv_heads,
            head_dim,
        }
        .heads_per_item()
    };
    assert_eq!(served(9, 3, 64), 3);
    assert_eq!(served(14, 2, 64), 4, "4 and 3");
    assert_eq!(served(32, 1, 64), 4);
    assert_eq!(served(5, 1, 256), 3, "3 and 2");
    assert_eq!(served(11, 1, 64), 4, "4, 4 and 3");
}

/// Statements, expressions and types, without where they stand in the text.
fn program(module: &naga::Module) -> String {
    let text = format!("{module:?}");
    let mut parts = text.split("Span {");
    let mut program = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        program.push_str(part.split_once('}').map_or(part, |(_, after)| after));
    }
    program
}

#[test]
fn sources_without_comments_say_the_same() {
    let texts: Vec<String> = build::sources(Path::new("wgsl"))
        .expect("the sources")
        .iter()
        .map(|(_, text)| build::stripped(text))
        .collect();
    let names = build::short_names(&texts);
    let distinct: BTreeSet<&String> = names.values().collect();
    assert!(names.len() > 300 && distinct.len() == names.len());
    // What Rust declares in the text around them keeps its name.
    for name in ["own_rows", "all_rows", "RowSums"] {
        assert!(!names.contains_key(name), "{name}");
    }
    assert!(distinct.iter().all(|short| short.len() <= 2));
    for (kernel, shape) in everything() {
        let source = kernel.source(shape);
        let short = build::renamed(&build::stripped(&source), &names);
        assert!(short.len() < source.len() && !short.contains("//"));
        // With short names too: no two names become one, so that only a word of the language could mean something else, and
        // that would not be valid. With short vectors, since what is spelled out makes types of its own.
        let whole = build::renamed(&build::short_vectors(source), &names);
        let whole = validate(&whole).expect("short names where no language's are");
        match validate(&short) {
            Err(error) => panic!("{} for {shape:?}:\n{error}", kernel.label()),
            Ok(module) => assert!(
                program(&module) == program(&whole),
                "{} for {shape:?}: another program",
                kernel.label()
            ),
        }
    }
    let kept = build::stripped("// words\n    let a = 1u; // more\n\n  }\n");
    assert_eq!(kept, "let a=1u;}");
}
