//! Decoding on a device with default limits: how many dispatches it takes, that fused and separate kernels agree,
//! batches in flight, stop tokens, and draws that depend on nothing but the seed and the text.

use moa_format::DType;
use moa_mask::KvFormat;
use moa_reference::compare::{Tolerance, compare};
use moa_reference::sample::{Choice, Seen, sample};
use moa_runtime_web::{DecodeKernels, Engine, EngineOptions, Sampler, SamplingOptions, Setup};
use moa_tests::random::Random;
use moa_tests::tiny::{self, TinyModel};
use pollster::block_on;

const CONTEXT: u32 = 300;
/// The same sums in another order, through f16 caches.
const REORDERED: Tolerance = Tolerance::new(4e-3, 1e-3);

/// Keys and values to 1 part in 254 of a row's largest.
const INT8: Tolerance = Tolerance::new(0.2, 2e-2);
/// Such caches against 16 bits: every value rounded to a 127th of its row's largest, in a model whose weights are random.
const BYTES: Tolerance = Tolerance::new(0.5, 5e-2);

fn ids(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(300)).collect()
}

fn model(dtype: DType) -> TinyModel {
    let config = tiny::config(3, 3);
    let plan = tiny::plan(&config, 8, &[24, 1024, 150, 60, 9]);
    TinyModel::new(config, plan, dtype, DType::F32, 1)
}

/// On a software adapter the separate kernels would be the default.
fn options(kernels: DecodeKernels) -> EngineOptions {
    EngineOptions {
        decode_kernels: Some(kernels),
        ..EngineOptions::default()
    }
}

fn prefill(engine: &mut Engine, ids: &[u32]) {
    let mut taken = 0;
    while taken < ids.len() {
        taken += block_on(engine.prefill(&ids[taken..])).expect("ids that fit");
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn a_layer_takes_six_dispatches() {
    let dispatches = |model: &TinyModel, kernels| {
        model
            .engine(CONTEXT, options(kernels))
            .dispatches_per_token()
    };
    let extras = tiny::config_with_extras();
    let plan = tiny::plan(&extras, 8, &[24]);
    let with_biases = TinyModel::new(extras, plan, DType::Q4, DType::F16, 1);
    for model in [&model(DType::Q4), &model(DType::F32), &with_biases] {
        // Three layers, and embedding, lm_head with its norm, and the choice in two steps.
        assert_eq!(dispatches(model, DecodeKernels::Fused), 3 * 6 + 4);
        assert_eq!(dispatches(model, DecodeKernels::Separate), 3 * 13 + 5);
    }
    // No variant has more of them.
    let model = model(DType::Q4);
    for variant in ["subgroups", "packed", "subgroups+dp4a+packed"] {
        let options = EngineOptions {
            variant: variant.parse().expect("a variant"),
            ..options(DecodeKernels::Fused)
        };
        let engine = model.engine(CONTEXT, options);
        assert_eq!(engine.dispatches_per_token(), 3 * 6 + 4, "{variant}");
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn fused_and_separate_kernels_agree() {
    let extras = tiny::config_with_extras();
    let plan = tiny::plan(&extras, 8, &[40, 300, 16]);
    for (name, model) in [
        ("q4", model(DType::Q4)),
        ("f16", model(DType::F16)),
        (
            "q8, biases",
            TinyModel::new(extras, plan, DType::Q8, DType::F16, 2),
        ),
    ] {
        let run = |kernels| {
            let mut engine = model.engine(CONTEXT, options(kernels));
            // Token by token through the cache, wrapped rings included: the prompt is short on purpose.
            prefill(&mut engine, &ids(3, 40));
            let chosen = block_on(engine.decode(32)).unwrap();
            engine.rewind(31).unwrap();
            prefill(&mut engine, &ids(4, 31));
            block_on(engine.decode(2)).unwrap();
            (chosen, block_on(engine.logits()).unwrap())
        };
        let (separate_ids, separate) = run(DecodeKernels::Separate);
        let (fused_ids, fused) = run(DecodeKernels::Fused);
        let error = compare(&fused, &separate, REORDERED).assert(name);
        println!("fused against separate, {name}: {error:.2e}");
        assert_eq!(fused_ids[..8], separate_ids[..8], "{name}");
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn caches_of_bytes_take_fewer_bytes_and_one_more_dispatch() {
    let model = model(DType::F16);
    let setup = |format| {
        Setup::new(
            model.bundle.manifest.clone(),
            model.bundle.plan.clone(),
            CONTEXT,
        )
        .unwrap()
        .with_kv_format(format)
    };
    // The same text token by token, whatever would have been chosen, and the logits after each.
    let text = ids(4, 24);
    let run = |format, kernels| {
        let setup = setup(format);
        let report = setup.kv_report().unwrap();
        let mut engine = model.bundle.engine_of(setup, options(kernels));
        assert_eq!(engine.ledger()["kvCache"], report.cache, "as predicted");
        assert_eq!(engine.ledger()["kvScratch"], report.scratch, "as predicted");
        prefill(&mut engine, &ids(3, 100));
        let mut all = Vec::new();
        for &id in &text {
            engine.choose(id).unwrap();
            all.extend(block_on(engine.logits()).unwrap());
        }
        // Taken back and put in again: what is in the cache before stays what it was.
        engine.rewind(20).unwrap();
        prefill(&mut engine, &text[4..]);
        let again = block_on(engine.logits()).unwrap();
        let last = &all[all.len() - again.len()..];
        let error = compare(&again, last, INT8).assert("the same text again");
        println!("{format:?}, {kernels:?}, the same text again: {error:.2e}");
        let tokens = block_on(engine.decode(8)).unwrap();
        (report, engine.dispatches_per_token(), tokens, all)
    };
    let (sixteen, _, _, exact) = run(KvFormat::Sixteen, DecodeKernels::Fused);
    let (int8, dispatches, fused_ids, fused) = run(KvFormat::Int8, DecodeKernels::Fused);
    assert_eq!(dispatches, 3 * 7 + 4);
    // A head has 32 channels: 36 bytes a row instead of 64.
    let head_dim = u64::from(setup(KvFormat::Int8).heads().head_dim);
    assert_eq!(int8.cache * 2 * head_dim, sixteen.cache * (head_dim + 4));
    assert_eq!((int8.scratch, int8.dense), (sixteen.scratch, sixteen.dense));
    let (_, dispatches, separate_ids, separate) = run(KvFormat::Int8, DecodeKernels::Separate);
    assert_eq!(dispatches, 3 * 14 + 5);
    assert_eq!(fused_ids, separate_ids);
    // A row that lies at a tie is rounded either way.
    let error = compare(&fused, &separate, INT8).assert("fused against separate, int8");
    println!("fused against separate, int8: {error:.2e}");
    let error = compare(&fused, &exact, BYTES).assert("bytes against 16 bits");
    println!("bytes against 16 bits: {error:.2e}");
    assert_ne!(fused, exact, "rounded");
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn batches_in_flight_give_what_single_tokens_give() {
    let model = model(DType::Q8);
    let mut engine = model.engine(CONTEXT, options(DecodeKernels::Fused));
    let prompt = ids(5, 70);
    let greedy = Sampler::greedy();
    prefill(&mut engine, &prompt);
    let single: Vec<u32> = (0..40)
        .map(|_| block_on(engine.decode(1)).unwrap()[0])
        .collect();
    let last = block_on(engine.logits()).unwrap();

    engine.reset();
    prefill(&mut engine, &prompt);
    engine.begin(20, &greedy).unwrap();
    engine.begin(13, &greedy).unwrap();
    engine.begin(7, &greedy).unwrap();
    assert_eq!((engine.in_flight(), engine.len()), (3, 70 + 39));
    assert_eq!(
        engine.begin(1, &greedy).unwrap_err().code(),
        "bad-argument",
        "no fourth"
    );
    assert_eq!(engine.rewind(1).unwrap_err().code(), "bad-argument");
    assert_eq!(
        block_on(engine.prefill(&[1])).unwrap_err().code(),
        "bad-argument"
    );
    assert_eq!(
        block_on(engine.logits()).unwrap_err().code(),
        "bad-argument"
    );
    let mut together = Vec::new();
    while engine.in_flight() > 0 {
        together.extend(block_on(engine.collect()).unwrap());
    }
    assert_eq!(together, single);
    assert_eq!(engine.pending(), single.last().copied());
    assert_eq!(block_on(engine.logits()).unwrap(), last, "bit for bit");
    assert_eq!(
        block_on(engine.collect()).unwrap_err().code(),
        "bad-argument"
    );

    // No more in flight than can be taken back; a reset forgets them.
    engine.reset();
    prefill(&mut engine, &prompt);
    engine.begin(32, &greedy).unwrap();
    assert_eq!(
        engine.begin(33, &greedy).unwrap_err().code(),
        "bad-argument"
    );
    engine.begin(32, &greedy).unwrap();
    assert_eq!(engine.begin(1, &greedy).unwrap_err().code(), "bad-argument");
    engine.reset();
    prefill(&mut engine, &prompt);
    assert_eq!(block_on(engine.decode(32)).unwrap(), single[..32]);
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn a_stop_token_stops_the_device() {
    let model = model(DType::F16);
    let mut engine = model.engine(CONTEXT, options(DecodeKernels::Fused));
    let prompt = ids(6, 50);
    prefill(&mut engine, &prompt);
    let all = block_on(engine.decode(32)).unwrap();
    let at = (1..32).find(|&at| !all[..at].contains(&all[at])).unwrap();
    let stop = all[at];
    engine.rewind(31).unwrap();
    prefill(&mut engine, &prompt[49..]);
    engine.rewind(1).unwrap();

    for greedy in [
        Sampler::greedy(),
        Sampler::new(SamplingOptions {
            top_k: 1,
            temperature: 1.0,
            ..SamplingOptions::default()
        })
        .unwrap(),
    ] {
        engine.reset();
        prefill(&mut engine, &prompt);
        engine
            .set_stop(&[7_u32.wrapping_add(stop) % 300, stop])
            .unwrap();
        engine.begin(32, &greedy).unwrap();
        engine.begin(8, &greedy).unwrap();
        let ids = block_on(engine.collect()).unwrap();
        let end = ids.iter().position(|&id| id == stop).unwrap();
        assert_eq!(ids, all[..ids.len()]);
        assert_eq!(end + 1, ids.len(), "nothing after it");
        assert_eq!(engine.in_flight(), 0, "the batch after it is dropped");
        assert_eq!(
            (engine.len() as usize, engine.pending()),
            (50 + end, Some(stop))
        );
        // The stop token may be fed all the same, and the text goes on as if it had never stopped.
        engine.set_stop(&[]).unwrap();
        let rest = block_on(engine.decode(4)).unwrap();
        assert_eq!(rest, all[ids.len()..ids.len() + 4]);
    }
    assert_eq!(
        engine.set_stop(&[0; 16]).unwrap_err().code(),
        "bad-argument"
    );
    assert_eq!(engine.set_stop(&[300]).unwrap_err().code(), "bad-token");
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn draws_depend_on_seed_and_text_alone() {
    let model = model(DType::Q4);
    let mut engine = model.engine(CONTEXT, options(DecodeKernels::Fused));
    let prompt = ids(8, 60);
    let options = SamplingOptions {
        temperature: 0.9,
        top_p: 0.95,
        seed: 42,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.1,
        ..SamplingOptions::default()
    };
    let sampler = Sampler::new(options).unwrap();
    prefill(&mut engine, &prompt);
    let whole = block_on(engine.decode_sampled(24, &sampler)).unwrap();
    // In other batches, in flight, after a rewind, and token by token.
    engine.reset();
    prefill(&mut engine, &prompt);
    let mut parts = Vec::new();
    engine.begin(5, &sampler).unwrap();
    engine.begin(9, &sampler).unwrap();
    parts.extend(block_on(engine.collect()).unwrap());
    parts.extend(block_on(engine.collect()).unwrap());
    while parts.len() < 24 {
        parts.push(block_on(engine.sample(&sampler)).unwrap());
    }
    assert_eq!(parts, whole);
    let other = Sampler::new(SamplingOptions {
        seed: 43,
        ..options
    })
    .unwrap();
    engine.reset();
    prefill(&mut engine, &prompt);
    assert_ne!(block_on(engine.decode_sampled(24, &other)).unwrap(), whole);

    // Each of them is the twin's choice for the logits that led to it.
    engine.reset();
    prefill(&mut engine, &prompt);
    let mut seen = vec![Seen::default(); 300];
    prompt
        .iter()
        .for_each(|&id| seen[id as usize].in_prompt = true);
    let choice = Choice {
        temperature: 0.9,
        top_k: 0,
        // 0.95 of 2^32.
        top_p: 4_080_218_931,
        min_weight: 0,
        seed: 42,
        repetition: 1.2,
        presence: 0.3,
        frequency: 0.1,
    };
    let mut clear = 0;
    for (&id, position) in whole.iter().zip(60..) {
        let logits = block_on(engine.logits()).unwrap();
        let chosen = sample(&logits, &seen, choice, position);
        if chosen.margin > 1e-4 {
            assert_eq!(chosen.id, id, "at {position}");
            clear += 1;
        }
        assert_eq!(block_on(engine.sample(&sampler)).unwrap(), id);
        seen[id as usize].generated += 1;
    }
    assert!(clear > 20, "{clear} of 24 were clear");

    // As a text that came from elsewhere and goes on: what was generated has to be said.
    let half: Vec<u32> = prompt.iter().chain(&whole[..12]).copied().collect();
    engine.reset();
    prefill(&mut engine, &half);
    engine.set_text(&half, 12).unwrap();
    assert_eq!(
        block_on(engine.decode_sampled(12, &sampler)).unwrap(),
        whole[12..]
    );
    assert_eq!(
        engine.set_text(&half, 12).unwrap_err().code(),
        "bad-argument"
    );

    // Only what is allowed is chosen, greedily and by chance.
    for sampler in [&Sampler::greedy(), &sampler] {
        engine.reset();
        prefill(&mut engine, &prompt);
        let mut logits = block_on(engine.logits()).unwrap();
        for (id, logit) in logits.iter_mut().enumerate() {
            if id != 7 && id != 270 {
                *logit = f32::NEG_INFINITY;
            }
        }
        engine.set_logits(&logits).unwrap();
        let id = block_on(engine.sample(sampler)).unwrap();
        assert!([7, 270].contains(&id), "{id}");
        assert_eq!(engine.set_logits(&logits).unwrap_err().code(), "no-logits");
    }
    assert_eq!(
        engine.set_logits(&[0.0]).unwrap_err().code(),
        "bad-argument"
    );
    engine.reset();
    prefill(&mut engine, &prompt);
    // Penalties cannot begin behind batches that nobody counted.
    engine.begin(2, &Sampler::greedy()).unwrap();
    assert_eq!(
        engine.begin(2, &sampler).unwrap_err().code(),
        "bad-argument"
    );
}
