//! The engine against what independent programs computed: `PyTorch` in f64 on tiny checkpoints, and SmolLM2's greedy
//! tokens in f32, dense and under a fixed plan.

#![expect(clippy::print_stdout, reason = "measured errors, for docs/kernels.md")]
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share may unwrap as tests do"
)]

use std::ops::Range;
use std::path::{Path, PathBuf};

use moa_format::{BlockType, DType, ImportOptions, PackedPiece, Plan, TensorSpec, pack, repack};
use moa_mask::{KvFormat, MaskGrid};
use moa_model::{Checkpoint, SourceType};
use moa_reference::compare::{Tolerance, compare, part_of_norm};
use moa_runtime_web::{
    DecodeKernels, Engine, EngineOptions, Extras, GpuOptions, Products, Setup, Variant,
};
use moa_tests::bundles::Bundle;
use moa_tests::tiny::{KvStored, TinyModel};
use pollster::block_on;
use safetensors::SafeTensors;

/// The twins' forward against the oracles: the same definition, f32 between operations.
const DEFINITION: Tolerance = Tolerance::new(2e-4, 1e-4);
/// tiny-qwen2 and tiny-llama3 have cosines and sines in f32.
const DEFINITION_F32_ROPE: Tolerance = Tolerance::new(1e-3, 1e-4);
/// The engine against the twins' forward, both with K and V in f16, where f32 may land across a tie.
const LOGITS: Tolerance = Tolerance::new(8e-3, 2e-3);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// A bundle in f32 of a checkpoint in `fixtures`, under the dense plan.
fn tiny(name: &str) -> TinyModel {
    let checkpoint = Checkpoint::open(fixture(name)).unwrap();
    let config = checkpoint.config().clone();
    let plan = Plan::dense(&config, MaskGrid::default());
    TinyModel::of(config, plan, |spec| {
        (
            checkpoint.tensor(&spec.name).unwrap().to_f32().unwrap(),
            DType::F32,
        )
    })
}

fn prefill(engine: &mut Engine, ids: &[u32]) {
    let mut taken = 0;
    while taken < ids.len() {
        taken += block_on(engine.prefill(&ids[taken..])).unwrap();
    }
}

/// The logits of every position: token by token, which is the same text in the smallest chunks.
fn all_logits(engine: &mut Engine, ids: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    for id in ids {
        prefill(engine, &[*id]);
        all.extend(block_on(engine.logits()).unwrap());
    }
    all
}

struct Oracle {
    bytes: Vec<u8>,
}

impl Oracle {
    fn open(name: &str) -> Self {
        Self {
            bytes: std::fs::read(fixture(name).join("oracle.safetensors")).unwrap(),
        }
    }

    /// Numbers of a tensor, whatever their type.
    fn numbers(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        let data = tensor.data();
        #[expect(clippy::cast_precision_loss, reason = "ids and spans are small")]
        let integer = |bytes| i64::from_le_bytes(bytes) as f64;
        match tensor.dtype() {
            safetensors::Dtype::F64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&b| f64::from_le_bytes(b))
                .collect(),
            safetensors::Dtype::F32 => data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b).into())
                .collect(),
            safetensors::Dtype::I64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&b| integer(b))
                .collect(),
            safetensors::Dtype::I32 => data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| i32::from_le_bytes(b).into())
                .collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn integers(&self, name: &str) -> Vec<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "ids and spans are small")]
        #[expect(clippy::cast_sign_loss, reason = "ids and spans are positive")]
        let integer = |value| value as u32;
        self.numbers(name).into_iter().map(integer).collect()
    }
}

/// Oracle, twin with exact caches, twin with f16 caches, engine: each against the next. (Rounding K and V to f16
/// alone moves these random models' logits by up to 0.04: engine against oracle would show little.)
fn check(
    label: &str,
    model: &TinyModel,
    plan: &Plan,
    ids: &[u32],
    oracle: &[f64],
    definition: Tolerance,
) {
    let context = u32::try_from(ids.len()).unwrap();
    let masks = plan.masks(context).unwrap();
    let exact = model.logits(ids, &masks, KvStored::F32);
    let defined = compare(&exact, oracle, definition).assert(label);
    let rounded = model.logits(ids, &masks, KvStored::F16);
    let mut engine = model
        .bundle
        .engine_with(plan, context, EngineOptions::default());
    let actual = all_logits(&mut engine, ids);
    let error = compare(&actual, &rounded, LOGITS).assert(label);
    println!("{label}: twin {defined:.2e} from the oracle, engine {error:.2e} from the twin");
    let shifted = [&rounded[1..], &rounded[..1]].concat();
    assert!(
        !compare(&actual, &shifted, LOGITS).passed(),
        "{label}: shifted logits passed"
    );
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn tiny_checkpoints_give_the_oracles_logits() {
    for (name, definition) in [
        ("tiny-llama", DEFINITION),
        ("tiny-qwen2", DEFINITION_F32_ROPE),
        ("tiny-llama3", DEFINITION_F32_ROPE),
    ] {
        let (model, oracle) = (tiny(name), Oracle::open(name));
        let ids = oracle.integers("ids");
        check(
            name,
            &model,
            &model.bundle.plan,
            &ids,
            &oracle.numbers("dense_logits"),
            definition,
        );
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn the_oracles_plan_masks_as_its_logits_say() {
    let (model, oracle) = (tiny("tiny-llama"), Oracle::open("tiny-llama"));
    let config = model.config().clone();
    let sink = oracle.integers("plan_sink")[0];
    let spans = oracle.integers("plan_spans");
    let spans: Vec<&[u32]> = spans.chunks(config.kv_heads as usize).collect();
    let plan_json = serde_json::json!({ "sink": sink, "spans": spans }).to_string();
    let plan = Plan::import(plan_json, ImportOptions::new("oracle", &config)).unwrap();
    let ids = oracle.integers("ids");
    let masked = oracle.numbers("masked_logits");
    check(
        "tiny-llama, masked",
        &model,
        &plan,
        &ids,
        &masked,
        DEFINITION,
    );
    let dense = oracle.numbers("dense_logits");
    assert!(
        !compare(&dense, &masked, LOGITS).passed(),
        "dense passed as masked"
    );
}

/// SmolLM2 from its GGUF, every weight exact: `Q4_1` as q4, `Q8_0` as q8, F32 as f32.
fn smollm2() -> Bundle {
    let path = std::env::var_os("MOA_SMOLLM2_GGUF").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    );
    let checkpoint = Checkpoint::open_weights(path).unwrap();
    let config = checkpoint.config().clone();
    let plan = Plan::dense(&config, MaskGrid::default());
    let block = |spec: &TensorSpec| match checkpoint.source_type(&spec.name).unwrap() {
        SourceType::Q4_1 => Some(BlockType::Q4_1),
        SourceType::Q8_0 => Some(BlockType::Q8_0),
        _ => None,
    };
    let piece = |spec: &TensorSpec, rows: Range<u32>| -> PackedPiece {
        let rows = rows.start as usize..rows.end as usize;
        let source = checkpoint.tensor_rows(&spec.name, rows).unwrap();
        match block(spec) {
            Some(block) => repack(block, source.bytes(), spec.cols).unwrap(),
            None => pack(DType::F32, &source.to_f32().unwrap(), spec.cols).unwrap(),
        }
    };
    Bundle::build(
        config,
        plan,
        |spec| block(spec).map_or(DType::F32, BlockType::dtype),
        piece,
    )
}

/// Tokens that must be equal: those before the first step whose two best logits are closer than this.
const CLEAR_MARGIN: f64 = 0.15;
/// The same where inputs of products are rounded on their way.
const CLEAR_MARGIN_ROUNDED: f64 = 0.5;

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
#[cfg_attr(
    all(skip_smollm2, not(skip_wgpu)),
    ignore = "no SmolLM2: set MOA_SMOLLM2_GGUF"
)]
fn smollm2_chooses_the_oracles_tokens() {
    let (oracle, bundle) = (greedy_oracle(), smollm2());
    let mut compared = 0;
    for (kind, plan) in plans(&oracle, &bundle) {
        let mut engine = bundle.engine_with(&plan, 1500, EngineOptions::default());
        for case in oracle["cases"].as_array().unwrap() {
            compared += check_tokens(kind, &mut engine, case, CLEAR_MARGIN, usize::MAX);
        }
    }
    assert!(compared > 100, "only {compared} tokens were clear");
}

/// The kernels of real devices, on a short prompt under a plan: with WebGPU's default limits, in every variant that this
/// device has, and with caches of bytes.
#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
#[cfg_attr(
    all(skip_smollm2, not(skip_wgpu)),
    ignore = "no SmolLM2: set MOA_SMOLLM2_GGUF"
)]
fn smollm2_chooses_the_oracles_tokens_in_every_variant() {
    let (oracle, bundle) = (greedy_oracle(), smollm2());
    let cases = oracle["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == "rain").unwrap();
    let (kind, plan) = &plans(&oracle, &bundle)[1];
    let setup = || Setup::new(bundle.manifest.clone(), plan.clone(), 200).unwrap();
    let options = EngineOptions {
        decode_kernels: Some(DecodeKernels::Fused),
        ..EngineOptions::default()
    };
    let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
    let logits = |engine: &mut Engine| {
        engine.reset();
        prefill(engine, &ids[..ids.len() - 1]);
        engine.choose(ids[ids.len() - 1]).unwrap();
        block_on(engine.logits()).unwrap()
    };
    let check = |name: &str, engine: &mut Engine, margin| {
        let compared = check_tokens(kind, engine, case, margin, 12);
        assert!(compared > 2, "{name}: only {compared} tokens were clear");
    };
    let mut base = bundle.engine_of(setup(), options);
    let expected = logits(&mut base);
    check("base", &mut base, CLEAR_MARGIN);
    drop(base);

    let everything = GpuOptions {
        extras: Extras::ALL,
        ..GpuOptions::default()
    };
    let bytes = setup().with_kv_format(KvFormat::Int8);
    let mut engines = [setup(), bytes].map(|setup| bundle.engine_on(everything, setup, options));
    let extras = engines[0].gpu().extras();
    // Each part by itself, and the most that may come together; of what each leaves of the logits: how far from the base's,
    // as a part of their norm.
    for (format, name, most) in [
        (0, "subgroups", 1e-3),
        (0, "f16", 1e-2),
        (0, "dp4a", 0.1),
        (0, "packed", 0.1),
        (0, "subgroups+dp4a+packed", 0.1),
        (1, "base", 0.1),
    ] {
        let variant: Variant = name.parse().unwrap();
        if !extras.allow(variant) {
            continue;
        }
        let engine = &mut engines[format];
        block_on(engine.set_variant(variant)).unwrap();
        let actual = logits(engine);
        let part = part_of_norm(&actual, &expected);
        let kv_format = engine.setup().kv_format();
        println!("{name}, {kv_format:?}: {part:.2e} of the norm");
        assert!(part < most, "{name}, {kv_format:?}: {part} of the norm");
        let rounds = variant.products != Products::F32 || variant.packed || format > 0;
        let margin = if rounds {
            CLEAR_MARGIN_ROUNDED
        } else {
            CLEAR_MARGIN
        };
        check(name, engine, margin);
    }
}

fn greedy_oracle() -> serde_json::Value {
    let file = fixture("smollm2").join("greedy.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The dense plan and the oracle's.
fn plans(oracle: &serde_json::Value, bundle: &Bundle) -> [(&'static str, Plan); 2] {
    let options = ImportOptions::new("oracle", &bundle.manifest.model);
    let planned = Plan::import(oracle["plan"].to_string(), options).unwrap();
    [("dense", bundle.plan.clone()), ("plan", planned)]
}

/// Greedy tokens after a case's prompt, at most so many; how many were clear and so had to be equal.
fn check_tokens(
    kind: &str,
    engine: &mut Engine,
    case: &serde_json::Value,
    margin: f64,
    most: usize,
) -> usize {
    let ids_of =
        |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let (ids, mut expected) = (
        ids_of(&case["ids"]),
        ids_of(&case[format!("{kind}_greedy")]),
    );
    let margins: Vec<f64> =
        serde_json::from_value(case[format!("{kind}_top1_margin")].clone()).unwrap();
    let clear = margins
        .iter()
        .position(|&own| own < margin)
        .unwrap_or(expected.len())
        .min(most);
    // What follows may be anything.
    expected.truncate(clear);
    engine.reset();
    prefill(engine, &ids);
    let mut tokens = Vec::new();
    while tokens.len() < expected.len() {
        let left = u32::try_from(expected.len() - tokens.len()).unwrap();
        tokens.extend(block_on(engine.decode(left.min(8))).unwrap());
    }
    let equal = tokens
        .iter()
        .zip(&expected)
        .take_while(|(a, b)| a == b)
        .count();
    println!("{} under {kind}: {equal} of {clear} tokens", case["name"]);
    assert!(
        equal == clear,
        "{} under {kind}: {tokens:?}, expected {expected:?}",
        case["name"]
    );
    clear
}
