//! The variants of the kernels, the engine whole: what needs features says what the base says, on whatever subgroups the
//! device has (`LP_NATIVE_VECTOR_WIDTH` of 128, 256 and 512 gives lavapipe some of 4, 8 and 16; `MOA_TEST_SUBGROUP` says
//! which are expected); and how one is chosen.

#![expect(clippy::print_stdout, reason = "measured errors, for docs/kernels.md")]
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share may unwrap as tests do"
)]

use moa_format::{DType, TensorRole};
use moa_mask::KvFormat;
use moa_reference::compare::{Tolerance, compare, part_of_norm};
use moa_runtime_web::{
    DecodeKernels, Engine, EngineOptions, Extras, Gpu, GpuOptions, Products, Setup, Variant,
};
use moa_tests::random::Random;
use moa_tests::tiny::{self, TinyModel};
use pollster::block_on;

const CONTEXT: u32 = 400;
/// The same sums in another order, through f16 caches; logits reach 5 or so.
const REORDERED: Tolerance = Tolerance::new(4e-3, 1e-3);
/// Groups of 32 summed in f16.
const F16: Tolerance = Tolerance::new(1e-1, 1e-2);
/// Inputs rounded to 127th parts of their group's largest, or a little more, in every layer, where few are much larger than the rest: how far
/// logits may be from the base's, as a part of their norm.
const BYTES: f64 = 0.15;
/// Caches of bytes: a row that lies at a tie is rounded either way.
const INT8: Tolerance = Tolerance::new(0.2, 2e-2);

/// The tolerance of a variant's logits; nothing where inputs are rounded to bytes.
const fn tolerance(variant: Variant) -> Option<Tolerance> {
    match (variant.products, variant.packed) {
        (Products::Dp4a, _) | (_, true) => None,
        (Products::F16, false) => Some(F16),
        (Products::F32, false) => Some(REORDERED),
    }
}

fn ids(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(300)).collect()
}

/// Channels that four threads share, so that every size of subgroups serves attention.
fn model(dtype: DType) -> TinyModel {
    let config = moa_format::ModelConfig {
        head_dim: 32,
        ..tiny::config(3, 3)
    };
    let plan = tiny::plan(&config, 8, &[24, 1024, 150, 60, 9]);
    TinyModel::new(config, plan, dtype, DType::F16, 1)
}

fn setup(model: &TinyModel) -> Setup {
    Setup::new(
        model.bundle.manifest.clone(),
        model.bundle.plan.clone(),
        CONTEXT,
    )
    .unwrap()
}

fn options(variant: Variant) -> EngineOptions {
    EngineOptions {
        // The kernels of real devices: on a software adapter others would be the default.
        decode_kernels: Some(DecodeKernels::Fused),
        variant,
        ..EngineOptions::default()
    }
}

/// Each part of a variant by itself, and all together.
fn variants(offered: Extras) -> Vec<Variant> {
    let names = [
        "base",
        "subgroups",
        "f16",
        "dp4a",
        "packed",
        "subgroups+f16+packed",
    ];
    let variants = names.map(|name| name.parse().unwrap());
    variants
        .into_iter()
        .filter(|variant| offered.allow(*variant))
        .collect()
}

/// What this device has.
fn extras(setup: &Setup) -> Extras {
    let everything = GpuOptions {
        extras: Extras::ALL,
        ..GpuOptions::default()
    };
    let gpu = block_on(Gpu::open(everything, setup.needs())).unwrap();
    let (least, most) = (
        gpu.adapter().subgroup_min_size,
        gpu.adapter().subgroup_max_size,
    );
    println!("{:?}, subgroups of {least} to {most}", gpu.extras());
    if let Ok(wanted) = std::env::var("MOA_TEST_SUBGROUP") {
        assert_eq!(least.to_string(), wanted, "subgroups of the size asked for");
    }
    gpu.extras()
}

fn prefill(engine: &mut Engine, ids: &[u32]) {
    let mut taken = 0;
    while taken < ids.len() {
        taken += block_on(engine.prefill(&ids[taken..])).unwrap();
    }
}

/// Logits after a prompt, and after each of the tokens that follow, put in one by one.
fn run(engine: &mut Engine, prompt: &[u32], after: &[u32]) -> Vec<Vec<f32>> {
    engine.reset();
    prefill(engine, prompt);
    let mut list = vec![block_on(engine.logits()).unwrap()];
    for &id in after {
        engine.choose(id).unwrap();
        list.push(block_on(engine.logits()).unwrap());
    }
    list
}

fn check(name: &str, actual: &[Vec<f32>], expected: &[Vec<f32>], tolerance: Option<Tolerance>) {
    // After the prompt, and after tokens that were decoded: largest error, largest part of the norm.
    let mut largest = [(0.0f64, 0.0f64); 2];
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let wide: Vec<f64> = expected.iter().copied().map(f64::from).collect();
        let part = part_of_norm(actual, &wide);
        let error = if let Some(tolerance) = tolerance {
            compare(actual, &wide, tolerance).assert(name)
        } else {
            assert!(part < BYTES, "{name}: token {index}: {part} of the norm");
            compare(actual, &wide, Tolerance::new(f64::INFINITY, 0.0)).assert(name)
        };
        let so_far = &mut largest[usize::from(index > 0)];
        *so_far = (so_far.0.max(error), so_far.1.max(part));
        // The choice too, wherever the base's is clear.
        let mut best: Vec<usize> = (0..wide.len()).collect();
        best.sort_by(|a, b| wide[*b].total_cmp(&wide[*a]));
        if wide[best[0]] - wide[best[1]] > 2.0 * error {
            let chosen = (0..actual.len()).max_by(|a, b| actual[*a].total_cmp(&actual[*b]));
            assert_eq!(chosen, Some(best[0]), "{name}: token {index}");
        }
    }
    let [(prefill, _), (decode, _)] = largest;
    let part = largest[0].1.max(largest[1].1);
    println!("{name}: prefill {prefill:.2e}, decode {decode:.2e}, {part:.2e} of the norm");
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn variants_say_what_the_base_says() {
    let (prompt, after) = (ids(3, 173), ids(4, 12));
    for dtype in [DType::Q4, DType::Q8] {
        let model = model(dtype);
        let offered = extras(&setup(&model));
        let mut base = model
            .bundle
            .engine_of(setup(&model), options(Variant::BASE));
        let expected = run(&mut base, &prompt, &after);
        for variant in variants(offered) {
            let mut engine = model.bundle.engine_of(setup(&model), options(variant));
            let actual = run(&mut engine, &prompt, &after);
            let name = format!("{}, {variant}", dtype.name());
            check(&name, &actual, &expected, tolerance(variant));
            // So that the ledger holds for whichever is in use.
            assert_eq!(engine.ledger(), base.ledger(), "{name}: not a byte more");
            assert_eq!(
                actual == expected,
                variant == Variant::BASE,
                "{name}: other kernels ran"
            );
            // Batches on the device give what single tokens give.
            engine.reset();
            prefill(&mut engine, &prompt);
            let together = block_on(engine.decode(16)).unwrap();
            engine.reset();
            prefill(&mut engine, &prompt);
            let single: Vec<u32> = (0..16)
                .map(|_| block_on(engine.decode(1)).unwrap()[0])
                .collect();
            assert_eq!(together, single, "{name}");
        }
        // The control: another prompt does not pass, whatever the variant.
        let mut changed = prompt.clone();
        changed[172] = (changed[172] + 1) % 300;
        let other = run(&mut base, &changed, &[]);
        let wide: Vec<f64> = other[0].iter().copied().map(f64::from).collect();
        assert!(!compare(&expected[0], &wide, F16).passed());
        assert!(part_of_norm(&expected[0], &wide) > 2.0 * BYTES);
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn caches_of_bytes_are_read_in_subgroups_too() {
    let model = model(DType::F16);
    let bytes = || setup(&model).with_kv_format(KvFormat::Int8);
    let variant = Variant {
        subgroups: true,
        ..Variant::BASE
    };
    if !extras(&bytes()).allow(variant) {
        println!("this device has no subgroups");
        return;
    }
    let (prompt, after) = (ids(5, 120), ids(6, 9));
    let [expected, actual] = [Variant::BASE, variant].map(|variant| {
        let mut engine = model.bundle.engine_of(bytes(), options(variant));
        run(&mut engine, &prompt, &after)
    });
    check("int8, subgroups", &actual, &expected, Some(INT8));
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn codes_go_into_caches_of_bytes() {
    let model = model(DType::Q4);
    let bytes = || setup(&model).with_kv_format(KvFormat::Int8);
    let (prompt, after) = (ids(5, 120), ids(6, 9));
    let packed: Variant = "packed".parse().unwrap();
    let [expected, actual] = [Variant::BASE, packed].map(|variant| {
        let mut engine = model.bundle.engine_of(bytes(), options(variant));
        if variant == packed {
            assert_eq!(count(&engine, &["qkv", "of_normed_codes"]), 2);
        }
        run(&mut engine, &prompt, &after)
    });
    check("int8, packed", &actual, &expected, None);
}

/// A model in which codes stop and begin again: one layer's values in another type than its queries and keys, one layer's
/// results of attention for a matrix without bytes, one layer without a fused gate, an `lm_head` without bytes.
#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn codes_are_taken_where_they_are_left_alone() {
    let config = moa_format::ModelConfig {
        head_dim: 32,
        layers: 4,
        tied_embeddings: false,
        ..tiny::config(2, 2)
    };
    let plan = tiny::plan(&config, 8, &[24, 1024, 150, 60, 9]);
    let mut random = Random::new(3);
    let mixed = TinyModel::of(config, plan, |spec| {
        let values = usize::try_from(spec.len()).unwrap();
        let named = |name: &str| spec.name.ends_with(name);
        let dtype = match spec.role {
            TensorRole::Norm | TensorRole::Bias => DType::F32,
            TensorRole::LmHead => DType::F16,
            _ if named("1.self_attn.v_proj.weight") || named("3.mlp.up_proj.weight") => DType::Q8,
            _ if named("2.self_attn.o_proj.weight") => DType::F16,
            _ => DType::Q4,
        };
        let values = match spec.role {
            TensorRole::Norm => vec![1.0; values],
            _ => random.spiked(values, 0.2),
        };
        (values, dtype)
    });
    let everything = GpuOptions {
        extras: Extras::ALL,
        ..GpuOptions::default()
    };
    let engine = |variant| {
        mixed
            .bundle
            .engine_on(everything, setup(&mixed), options(variant))
    };
    let mut packed = engine("packed".parse().unwrap());
    // Layers 0 and 1 leave both, layer 2 that of its feed-forward network, layer 3 that of attention to nobody.
    assert_eq!(count(&packed, &["leaves"]), 5);
    assert_eq!(
        count(&packed, &["qkv", "of_normed_codes"]),
        4,
        "two kinds in layer 1"
    );
    let (prompt, after) = (ids(1, 40), ids(2, 4));
    let expected = run(&mut engine(Variant::BASE), &prompt, &after);
    let actual = run(&mut packed, &prompt, &after);
    check("codes here and there", &actual, &expected, None);
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn a_variant_is_chosen_and_changed_under_a_text() {
    let model = model(DType::Q4);
    let everything = GpuOptions {
        extras: Extras::ALL,
        ..GpuOptions::default()
    };
    let mut engine = model
        .bundle
        .engine_on(everything, setup(&model), options(Variant::BASE));
    let extras = engine.gpu().extras();
    let (prompt, after) = (ids(7, 90), ids(8, 6));
    let expected = run(&mut engine, &prompt, &after);

    let chosen = block_on(engine.tune()).unwrap();
    println!("{extras:?}: {chosen}");
    assert!(extras.allow(chosen));
    assert_eq!((engine.variant(), engine.len()), (chosen, 0));
    // Not a byte more or less than an engine that was made so.
    let made = model
        .bundle
        .engine_on(everything, setup(&model), options(chosen));
    assert_eq!(engine.ledger(), made.ledger());
    let actual = run(&mut engine, &prompt, &after);
    check("tuned", &actual, &expected, tolerance(chosen));

    // In the middle of a text, there and back.
    let mut actual = Vec::new();
    for variant in variants(extras) {
        engine.reset();
        block_on(engine.set_variant(Variant::BASE)).unwrap();
        prefill(&mut engine, &prompt);
        block_on(engine.set_variant(variant)).unwrap();
        actual.clear();
        actual.push(block_on(engine.logits()).unwrap());
        for &id in &after {
            engine.choose(id).unwrap();
            actual.push(block_on(engine.logits()).unwrap());
        }
        let decode = Variant {
            products: Products::F32,
            ..variant
        };
        let name = format!("changed to {variant}");
        check(&name, &actual, &expected, tolerance(decode));
    }
}

/// Kernels of a decoded token whose labels hold all of these.
fn count(engine: &Engine, parts: &[&str]) -> usize {
    let labels = engine.decode_labels();
    labels
        .iter()
        .filter(|label| parts.iter().all(|part| label.contains(part)))
        .count()
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn kernels_leave_codes_where_the_next_one_takes_them() {
    let packed: Variant = "packed".parse().unwrap();
    let everything = GpuOptions {
        extras: Extras::ALL,
        ..GpuOptions::default()
    };
    let engine = |model: &TinyModel, variant| {
        let options = options(variant);
        model.bundle.engine_on(everything, setup(model), options)
    };
    let plain = model(DType::Q4);
    assert_eq!(count(&engine(&plain, Variant::BASE), &["codes"]), 0);
    let with_codes = engine(&plain, packed);
    let counts =
        ["merge_lse", "qkv", "gate_up", "project"].map(|stem| count(&with_codes, &[stem, "codes"]));
    assert_eq!(
        counts,
        [3, 2, 3, 7],
        "all but the first layer's first product"
    );
    assert_eq!(count(&with_codes, &["leaves"]), 6, "both of three layers");

    // Heads of few channels, and a matrix of another type behind the gates.
    let config = moa_format::ModelConfig {
        head_dim: 24,
        ..tiny::config(2, 2)
    };
    let plan = tiny::plan(&config, 8, &[24, 1024, 150, 60, 9]);
    let mut random = Random::new(3);
    let mixed = TinyModel::of(config, plan, |spec| {
        let count = usize::try_from(spec.len()).unwrap();
        let dtype = match spec.role {
            TensorRole::Norm | TensorRole::Bias => DType::F32,
            _ if spec.name.ends_with("down_proj.weight") => DType::Q8,
            _ => DType::Q4,
        };
        let values = match spec.role {
            TensorRole::Norm => vec![1.0; count],
            _ => random.spiked(count, 0.2),
        };
        (values, dtype)
    });
    let mut engine_of_mixed = engine(&mixed, packed);
    assert_eq!(
        count(&engine_of_mixed, &["leaves"]),
        6,
        "codes suit either type"
    );
    let (prompt, after) = (ids(1, 40), ids(2, 4));
    let expected = run(&mut engine(&mixed, Variant::BASE), &prompt, &after);
    check(
        "mixed types, packed",
        &run(&mut engine_of_mixed, &prompt, &after),
        &expected,
        None,
    );
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn variants_need_what_the_device_was_asked_for() {
    let model = model(DType::Q4);
    let least = GpuOptions {
        default_limits: true,
        extras: Extras::ALL,
        ..GpuOptions::default()
    };
    let open = || block_on(Gpu::open(least, setup(&model).needs())).unwrap();
    assert_eq!(
        open().extras(),
        Extras::default(),
        "nothing but the defaults"
    );
    for variant in Variant::all() {
        let engine = block_on(Engine::new(open(), setup(&model), options(variant)));
        match engine {
            Ok(_) => assert_eq!(variant, Variant::BASE),
            Err(error) => assert_eq!(error.code(), "bad-argument", "{variant}"),
        }
    }
}
