//! The whole engine on a device with default limits against a forward pass in f64: every weight type, chunks and
//! turns, rewinds, memory, damage. The smallest models that still have heads of different spans and wrapped rings.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod forbidden;
mod share;
mod turns;

use moa_format::DType;
use moa_mask::{ModelMasks, PREFILL_CHUNK, SLACK};
use moa_reference::argmax::argmax;
use moa_reference::compare::{Tolerance, compare};
use moa_runtime_web::{
    DecodeKernels, Engine, EngineError, EngineOptions, Gpu, GpuOptions, Request, Sampler,
    SamplingOptions, Setup, StopReason, generate,
};
use moa_tests::random::Random;
use moa_tests::tiny::{self, KvStored, TinyModel};
use pollster::block_on;

/// Logits reach 5 or so; K and V rounded to f16 differ where f32 lands across a tie.
const LOGITS: Tolerance = Tolerance::new(4e-3, 1e-3);
/// The same sums in another order.
const REORDERED: Tolerance = Tolerance::new(4e-3, 1e-3);
const CONTEXT: u32 = 720;

fn ids(seed: u64, count: usize, vocab: u32) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(vocab)).collect()
}

/// Heads of different spans: one narrow, one wide, one that sees everything, with a sink of 8.
fn model(dtype: DType) -> TinyModel {
    let config = tiny::config(3, 3);
    let plan = tiny::plan(&config, 8, &[24, 1024, 150, 60, 9]);
    TinyModel::new(config, plan, dtype, DType::F32, 1)
}

fn prefill(engine: &mut Engine, ids: &[u32]) {
    let mut taken = 0;
    while taken < ids.len() {
        taken += block_on(engine.prefill(&ids[taken..])).expect("ids that fit");
    }
}

fn logits(engine: &mut Engine) -> Vec<f32> {
    block_on(engine.logits()).expect("something was prefilled")
}

/// The last row of the twin's logits.
fn twin(model: &TinyModel, ids: &[u32], masks: &ModelMasks) -> Vec<f64> {
    let all = model.logits(ids, masks, KvStored::F16);
    all[all.len() - model.config().vocab_size as usize..].to_vec()
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn logits_equal_the_f64_forward_for_every_type() {
    let extras = |dtype, vector| {
        let config = tiny::config_with_extras();
        let plan = tiny::plan(&config, 8, &[40, 300, 16]);
        TinyModel::new(config, plan, dtype, vector, 2)
    };
    let models = [
        ("f32", model(DType::F32)),
        ("f16", model(DType::F16)),
        ("q8", model(DType::Q8)),
        ("q4", model(DType::Q4)),
        (
            "f32, biases, untied, llama3 rope",
            extras(DType::F32, DType::F32),
        ),
        ("q4, f16 biases", extras(DType::Q4, DType::F16)),
    ];
    for (name, model) in models {
        let options = EngineOptions {
            decode_kernels: Some(DecodeKernels::Fused),
            ..EngineOptions::default()
        };
        let mut engine = model.engine(CONTEXT, options);
        let masks = model.masks(CONTEXT);
        let prompt = ids(3, 173, model.config().vocab_size);
        prefill(&mut engine, &prompt);
        let actual = logits(&mut engine);
        let expected = twin(&model, &prompt, &masks);
        let error = compare(&actual, &expected, LOGITS).assert(name);
        // Twelve more by the decode path; the twin gets what the engine chose.
        let chosen = block_on(engine.decode(12)).unwrap();
        let decoded = logits(&mut engine);
        let whole: Vec<u32> = prompt.iter().chain(&chosen).copied().collect();
        assert_eq!(engine.len() as usize, whole.len());
        let after = twin(&model, &whole, &masks);
        let decode_error = compare(&decoded, &after, LOGITS).assert(name);
        println!("logits, {name}: prefill {error:.2e}, decode {decode_error:.2e}");
        assert_eq!(chosen[0], argmax(&actual), "{name}: greedy");
        // Controls: the dense model, and a narrower window, are told apart.
        let dense = ModelMasks::dense(3, model.config().kv_heads as usize);
        assert!(
            !compare(&actual, &twin(&model, &prompt, &dense), LOGITS).passed(),
            "{name}: dense passed"
        );
        let narrower = tiny::plan(model.config(), 8, &[23, 1023, 149, 59, 9])
            .masks(CONTEXT)
            .unwrap();
        assert!(
            !compare(&actual, &twin(&model, &prompt, &narrower), LOGITS).passed(),
            "{name}: window - 1 passed"
        );
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn chunks_and_turns_give_the_same_logits() {
    let model = model(DType::Q8);
    let prompt = ids(4, 650, model.config().vocab_size);
    let expected = twin(&model, &prompt, &model.masks(CONTEXT));
    let mut engine = model.engine(
        CONTEXT,
        EngineOptions {
            prefill_chunk: Some(PREFILL_CHUNK),
            ..EngineOptions::default()
        },
    );
    let mut whole = Vec::new();
    for chunk in [650, 300, 64, 7, 1] {
        engine.reset();
        prompt
            .chunks(chunk)
            .for_each(|ids| prefill(&mut engine, ids));
        let actual = logits(&mut engine);
        let error = compare(&actual, &expected, LOGITS).assert("chunks against the twin");
        if whole.is_empty() {
            whole.clone_from(&actual);
        }
        let among = compare(&actual, &whole, REORDERED).assert("chunks among themselves");
        println!("chunks of {chunk}: {error:.2e} from the twin, {among:.2e} from one piece");
    }
    // Three turns, with tokens decoded between and put back in: what was decoded is taken back first.
    engine.reset();
    for turn in [&prompt[..200], &prompt[200..421], &prompt[421..]] {
        prefill(&mut engine, turn);
        let decoded = block_on(engine.decode(9)).unwrap();
        assert_eq!(decoded.len(), 9);
        engine.rewind(8).unwrap();
    }
    prefill(&mut engine, &[]);
    engine.rewind(1).unwrap();
    prefill(&mut engine, &prompt[649..]);
    let error = compare(&logits(&mut engine), &expected, LOGITS).assert("three turns");
    println!("three turns: {error:.2e}");
    // The same run twice is the same to the bit.
    engine.reset();
    prefill(&mut engine, &prompt);
    let first = logits(&mut engine);
    engine.reset();
    prefill(&mut engine, &prompt);
    assert_eq!(logits(&mut engine), first);
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn rewinds_are_exact_and_bounded() {
    let model = model(DType::F32);
    let prompt = ids(6, 400, model.config().vocab_size);
    let more = ids(7, 30, model.config().vocab_size);
    let mut engine = model.engine(CONTEXT, EngineOptions::default());
    let straight = |engine: &mut Engine| {
        engine.reset();
        prefill(engine, &prompt);
        prefill(engine, &more);
        logits(engine)
    };
    let expected = straight(&mut engine);
    for back in [1, 31, SLACK] {
        engine.reset();
        prefill(&mut engine, &prompt);
        for _ in 0..back {
            block_on(engine.decode(1)).unwrap();
        }
        block_on(engine.logits()).unwrap();
        assert_eq!(engine.len(), 400 + back);
        assert_eq!(engine.rewindable(), SLACK);
        engine.rewind(back).unwrap();
        assert_eq!(
            engine.rewindable(),
            SLACK - back,
            "measured from the longest"
        );
        assert!(matches!(
            block_on(engine.decode(1)),
            Err(EngineError::NoLogits)
        ));
        assert!(matches!(
            engine.rewind(SLACK - back + 1),
            Err(EngineError::RewindTooFar { .. })
        ));
        prefill(&mut engine, &more);
        assert_eq!(
            logits(&mut engine),
            expected,
            "{back} tokens back, bit for bit"
        );
    }
    // While nothing was overwritten everything can be taken back.
    engine.reset();
    prefill(&mut engine, &prompt[..60]);
    assert_eq!(engine.rewindable(), 60);
    engine.rewind(60).unwrap();
    prefill(&mut engine, &prompt);
    prefill(&mut engine, &more);
    assert_eq!(logits(&mut engine), expected);
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn kv_bytes_are_the_predicted_ones() {
    let model = model(DType::Q4);
    for context in [1, 50, 256, 720, 4096] {
        let engine = model.engine(context, EngineOptions::default());
        let report = engine.setup().kv_report().unwrap();
        let at = moa_format::PlanAt::of(&model.bundle.plan, model.config(), context).unwrap();
        assert_eq!(
            (report.cache, report.scratch, report.dense),
            (at.cache_bytes, at.scratch_bytes, at.dense_bytes)
        );
        assert_eq!(
            engine.ledger()["kvCache"],
            report.cache,
            "allocated at {context}"
        );
        assert_eq!(
            engine.ledger()["kvScratch"],
            report.scratch,
            "allocated at {context}"
        );
        let weights: usize = model.bundle.shards.iter().map(Vec::len).sum();
        assert_eq!(engine.ledger()["weights"], weights as u64);
        println!(
            "context {context}: {} dispatches a token",
            engine.dispatches_per_token()
        );
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn large_embeddings_are_split_by_rows() {
    // 200,000 rows of 32 f32 are more than a piece of 24 MiB.
    let config = moa_format::ModelConfig {
        layers: 1,
        hidden_dim: 32,
        ffn_dim: 32,
        vocab_size: 200_000,
        ..tiny::config(1, 2)
    };
    let plan = tiny::plan(&config, 0, &[100]);
    let model = TinyModel::new(config, plan, DType::F32, DType::F32, 9);
    assert_eq!(
        model
            .bundle
            .manifest
            .tensor(moa_format::EMBEDDING)
            .unwrap()
            .pieces
            .len(),
        2
    );
    let prompt = [3, 199_999, 196_607, 196_608, 100_000];
    let expected = twin(&model, &prompt, &model.masks(64));
    let run = |kernels, binding_bytes| {
        let options = EngineOptions {
            decode_kernels: Some(kernels),
            binding_bytes,
            ..EngineOptions::default()
        };
        let mut engine = model.engine(64, options);
        prefill(&mut engine, &prompt);
        let error = compare(&logits(&mut engine), &expected, LOGITS).assert("two pieces");
        println!("two pieces: {error:.2e}");
        let tokens = block_on(engine.decode(8)).unwrap();
        let bytes = engine.ledger()["weights"];
        (tokens, bytes, engine.dispatches_per_token())
    };
    let whole = run(DecodeKernels::Fused, None);
    // A piece in each binding: a dispatch more for the embedding, and one for the head.
    let (tokens, bytes, dispatches) = run(DecodeKernels::Fused, Some(24 << 20));
    assert_eq!((tokens, bytes, dispatches), (whole.0, whole.1, whole.2 + 2));
    run(DecodeKernels::Separate, None);
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn damage_and_misuse_are_typed_errors() {
    let model = model(DType::Q4);
    let setup = || {
        Setup::new(
            model.bundle.manifest.clone(),
            model.bundle.plan.clone(),
            CONTEXT,
        )
        .unwrap()
    };
    let open = || block_on(Gpu::open(GpuOptions::default(), setup().needs())).unwrap();
    let mut engine = block_on(Engine::new(open(), setup(), EngineOptions::default())).unwrap();
    let shard = &model.bundle.shards[0];
    for byte in [0, shard.len() / 2, shard.len() - 1] {
        for bit in [0, 7] {
            let mut damaged = shard.clone();
            damaged[byte] ^= 1 << bit;
            let error = engine.write_shard(0, 0, &damaged).unwrap_err();
            assert_eq!(error.code(), "hash-mismatch", "{error}");
        }
    }
    assert_eq!(
        engine.write_shard(0, 0, &shard[1..]).unwrap_err().code(),
        "hash-mismatch"
    );
    assert_eq!(
        engine.write_shard(1, 0, shard).unwrap_err().code(),
        "bad-chunk"
    );
    assert_eq!(
        engine.write_shard(0, 4, shard).unwrap_err().code(),
        "bad-chunk"
    );
    assert_eq!(
        block_on(engine.finish_loading()).unwrap_err().code(),
        "not-loaded"
    );
    assert_eq!(
        block_on(engine.prefill(&[1])).unwrap_err().code(),
        "not-loaded"
    );
    engine.write_shard(0, 0, shard).unwrap();
    assert_eq!(
        engine.write_shard(0, 0, shard).unwrap_err().code(),
        "bad-chunk",
        "each chunk once"
    );
    block_on(engine.finish_loading()).unwrap();

    assert_eq!(block_on(engine.decode(1)).unwrap_err().code(), "no-logits");
    assert_eq!(
        block_on(engine.prefill(&[1, 300])).unwrap_err().code(),
        "bad-token"
    );
    let long = vec![1; CONTEXT as usize + 1];
    assert_eq!(
        block_on(engine.prefill(&long)).unwrap_err().code(),
        "context-overflow"
    );
    assert_eq!(
        block_on(engine.decode(33)).unwrap_err().code(),
        "bad-argument"
    );
    assert_eq!(engine.rewind(1).unwrap_err().code(), "rewind-too-far");
    // The last position can be filled, and a token chosen after it; then it is full.
    prefill(&mut engine, &long[..CONTEXT as usize]);
    assert_eq!(block_on(engine.decode(1)).unwrap().len(), 1);
    assert_eq!(
        block_on(engine.decode(1)).unwrap_err().code(),
        "context-overflow"
    );

    assert_eq!(
        Setup::new(
            model.bundle.manifest.clone(),
            model.bundle.plan.clone(),
            4097
        )
        .unwrap_err()
        .code(),
        "bad-argument"
    );
    let mut other = model.bundle.plan.clone();
    other.rules.pop();
    assert_eq!(
        Setup::new(model.bundle.manifest.clone(), other, 64)
            .unwrap_err()
            .code(),
        "bad-plan"
    );
    let huge = moa_format::ModelConfig {
        max_context: 1 << 23,
        ..tiny::config(1, 1)
    };
    let plan = tiny::plan(&huge, 8, &[16]);
    let model = TinyModel::new(huge, plan, DType::Q4, DType::F32, 1);
    let setup = Setup::new(
        model.bundle.manifest.clone(),
        model.bundle.plan.clone(),
        1 << 23,
    )
    .unwrap();
    let limits = GpuOptions {
        default_limits: true,
        low_power: false,
        ..GpuOptions::default()
    };
    assert_eq!(
        block_on(Gpu::open(limits, setup.needs()))
            .unwrap_err()
            .code(),
        "limits"
    );
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn generation_stops_where_it_should() {
    let model = model(DType::F32);
    let prompt = ids(8, 40, model.config().vocab_size);
    let mut engine = model.engine(100, EngineOptions::default());
    let mut run = |batch, stop: &[u32], max_tokens, sampler: &Sampler, abort_after: usize| {
        engine.reset();
        let request = Request {
            prompt: &prompt,
            max_tokens,
            stop,
            batch,
        };
        let mut steps = 0;
        let generated = block_on(generate(&mut engine, &request, sampler, |_| {
            steps += 1;
            steps < abort_after
        }))
        .unwrap();
        (
            generated.tokens,
            generated.reason,
            engine.len(),
            engine.pending(),
        )
    };
    let greedy = &Sampler::greedy();
    let (all, reason, len, pending) = run(1, &[], 20, greedy, usize::MAX);
    assert_eq!((all.len(), reason, len), (20, StopReason::Length, 59));
    assert_eq!(pending, all.last().copied());
    for batch in [3, 8, 32] {
        assert_eq!(
            run(batch, &[], 20, greedy, usize::MAX).0,
            all,
            "batches of {batch}"
        );
    }
    // A stop token in the middle of a batch: it and what came after it leave the cache.
    let stop = all
        .iter()
        .copied()
        .find(|id| *id != all[0])
        .unwrap_or(all[0]);
    let at = all.iter().position(|id| *id == stop).unwrap();
    for batch in [1, 8] {
        let (tokens, reason, len, pending) = run(batch, &[stop], 20, greedy, usize::MAX);
        assert_eq!(
            (tokens.as_slice(), reason, pending),
            (&all[..at], StopReason::Stop, None)
        );
        assert_eq!(len as usize, 40 + at);
    }
    assert_eq!(run(4, &[], 20, greedy, 2).1, StopReason::Aborted);
    let (tokens, reason, len, _) = run(8, &[], 500, greedy, usize::MAX);
    assert_eq!(
        (tokens.len(), reason, len),
        (61, StopReason::Context, 100),
        "one token past the last position"
    );
    // Sampled: a seed repeats, batches do not matter.
    let options = SamplingOptions {
        temperature: 1.0,
        seed: 3,
        ..SamplingOptions::default()
    };
    let mut sampled = |seed| {
        let sampler = Sampler::new(SamplingOptions { seed, ..options }).unwrap();
        run(8, &[], 12, &sampler, usize::MAX).0
    };
    assert_eq!(sampled(3), sampled(3));
    assert_ne!(sampled(3), sampled(4));
}
