//! The batched engine against the model on the CPU: dense and under plans, whole texts, chunks, tokens, greedy texts, likelihoods.
//! Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "tests that report their errors"
)]

mod model;

use std::sync::Arc;

use moa_cuda_engine::{Engine, EngineError, EngineOptions, Model, Question};
use moa_kernels::Gpu;
use moa_lm::{Cpu, Lm, LmError, WeightSource};
use moa_mask::{HeadMask, HeadRule, KvFormat, MaskGrid, ModelMasks};
use moa_reference::compare::{Tolerance, compare};
use model::{random, tiny, tokens};

const CONTEXT: u32 = 700;

fn options(batch: usize, chunk: usize) -> EngineOptions {
    EngineOptions {
        context: CONTEXT,
        batch,
        chunk,
        format: KvFormat::Sixteen,
    }
}

struct Pair {
    cpu: Lm<Cpu>,
    gpu: Arc<Model>,
}

fn pair(source: &dyn WeightSource) -> Pair {
    let device = Arc::new(Gpu::open(0, None).unwrap());
    Pair {
        cpu: Lm::load(Cpu, source, &()).unwrap(),
        gpu: Arc::new(Model::load(device, source).unwrap()),
    }
}

/// Spans that differ by head and layer, some shorter than a chunk, one dense; sink 8.
fn plan(pair: &Pair) -> ModelMasks {
    let config = pair.cpu.config();
    let spans = [40, 300, 700, 9, 150];
    let rules: Vec<Vec<HeadRule>> = (0..config.layers)
        .map(|layer| {
            (0..config.kv_heads)
                .map(|head| HeadRule::Exact {
                    span: spans[((layer * config.kv_heads + head) % 5) as usize],
                })
                .collect()
        })
        .collect();
    ModelMasks::from_rules(&rules, CONTEXT, MaskGrid::new(8, 8).unwrap()).unwrap()
}

/// How far logits may be off, in parts of the largest one, and their root mean square error in parts of their root mean square.
/// Everything but weights and residual streams is rounded to bf16 on the device, and random weights pass errors on undamped: a
/// simulation in f64 that rounds where the device does is off by up to 3.8e-2 and 2.9e-2 here, with bytes 8.9e-2 and 7.7e-2.
struct Allowed {
    largest: f64,
    rms: f64,
}

/// For 16-bit caches, and for caches of bytes.
const SIXTEEN: Allowed = Allowed {
    largest: 0.06,
    rms: 0.05,
};
const INT8: Allowed = Allowed {
    largest: 0.15,
    rms: 0.12,
};

/// Both errors, and whether they are allowed.
fn errors(actual: &[f32], expected: &[f32], allowed: &Allowed) -> (f64, f64, bool) {
    let expected: Vec<f64> = expected.iter().copied().map(f64::from).collect();
    let tolerance = Tolerance::of_largest(allowed.largest, &expected);
    let result = compare(actual, &expected, tolerance);
    let rms = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let off = rms(&mut actual.iter().zip(&expected).map(|(&a, e)| f64::from(a) - e));
    let off = off / rms(&mut expected.iter().copied());
    let largest = result.max_error * allowed.largest / tolerance.abs;
    (largest, off, result.passed() && off <= allowed.rms)
}

fn close(actual: &[f32], expected: &[f32], allowed: &Allowed) -> bool {
    errors(actual, expected, allowed).2
}

/// Prefills two texts of different lengths, feeds the rest token by token, and compares every row of logits.
fn follow(
    pair: &Pair,
    masks: Option<&ModelMasks>,
    options: EngineOptions,
    allowed: &Allowed,
) -> String {
    let vocab = pair.cpu.config().vocab_size;
    let texts = [tokens(420, vocab, 1), tokens(73, vocab, 2)];
    let read = [401, 54];
    let mut engine = Engine::new(pair.gpu.clone(), masks, options).unwrap();
    let expected = texts
        .each_ref()
        .map(|text| pair.cpu.logits(text, masks, &()).unwrap());
    let begun: Vec<&[u32]> = texts.iter().zip(read).map(|(t, n)| &t[..n]).collect();
    let mut logits = engine.prefill(&begun).unwrap();
    let (mut largest, mut rms) = (0.0f64, 0.0f64);
    for step in 0.. {
        for (request, logits) in logits.iter().enumerate() {
            let at = (read[request] - 1 + step) * vocab as usize;
            let expected = &expected[request][at..at + vocab as usize];
            let found = errors(logits, expected, allowed);
            (largest, rms) = (largest.max(found.0), rms.max(found.1));
            assert!(
                found.2,
                "request {request}, token {step}, {options:?}: {found:?}"
            );
        }
        if step == 19 {
            break;
        }
        let ids: Vec<u32> = (0..2).map(|r| texts[r][read[r] + step]).collect();
        logits = engine.feed(&ids).unwrap();
    }
    // The comparator sees a neighboring row's logits.
    let other = &expected[0][..vocab as usize];
    assert!(!close(&logits[0], other, allowed));
    format!("error {largest:.2e} of the largest logit, rms {rms:.2e}")
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn logits_are_the_cpus_dense_and_under_a_plan() {
    for (heads, kv_heads, head_dim) in [(6, 2, 64), (4, 4, 128), (7, 1, 24)] {
        let pair = pair(&random(heads, kv_heads, head_dim));
        let masks = plan(&pair);
        for (name, masks) in [("dense", None), ("plan", Some(&masks))] {
            let shape = (heads, kv_heads, head_dim);
            for chunk in [1024, 64, 37] {
                let error = follow(&pair, masks, options(2, chunk), &SIXTEEN);
                println!("{shape:?} {name} chunks of {chunk}: {error}");
            }
            let bytes = EngineOptions {
                format: KvFormat::Int8,
                ..options(3, 100)
            };
            let error = follow(&pair, masks, bytes, &INT8);
            println!("{shape:?} {name} bytes: {error}");
        }
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn another_plan_gives_other_logits() {
    let pair = pair(&random(6, 2, 64));
    let masks = plan(&pair);
    let text = tokens(400, 504, 1);
    let mut engine = Engine::new(pair.gpu.clone(), Some(&masks), options(1, 64)).unwrap();
    let logits = engine.prefill(&[&text]).unwrap().remove(0);
    let row = |masks: &ModelMasks| {
        let all = pair.cpu.logits(&text, Some(masks), &()).unwrap();
        all[399 * 504..].to_vec()
    };
    assert!(close(&logits, &row(&masks), &SIXTEEN));
    let narrow = ModelMasks::uniform(3, 2, HeadMask::from_span(30, 8));
    assert!(!close(&logits, &row(&narrow), &SIXTEEN));
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn tiny_checkpoints_of_every_family() {
    for name in ["tiny-llama", "tiny-qwen2", "tiny-llama3"] {
        let source = tiny(name);
        let pair = pair(&source);
        let vocab = pair.cpu.config().vocab_size;
        let text = tokens(150, vocab, 5);
        let expected = pair.cpu.logits(&text, None, &()).unwrap();
        let mut engine = Engine::new(pair.gpu.clone(), None, options(2, 64)).unwrap();
        let logits = engine.prefill(&[&text]).unwrap().remove(0);
        let found = errors(&logits, &expected[149 * vocab as usize..], &SIXTEEN);
        println!(
            "{name}: error {:.2e} of the largest logit, rms {:.2e}",
            found.0, found.1
        );
        assert!(found.2, "{name}");
    }
}

/// How far each of `written` is below the CPU's best token after the same text, in parts of the largest logit: 0 where it is the best.
fn below_best(pair: &Pair, masks: &ModelMasks, prompt: &[u32], written: &[u32]) -> Vec<f32> {
    let text: Vec<u32> = prompt.iter().chain(written).copied().collect();
    let logits = pair.cpu.logits(&text, Some(masks), &()).unwrap();
    let vocab = pair.cpu.config().vocab_size as usize;
    written
        .iter()
        .enumerate()
        .map(|(i, &id)| {
            let row = &logits[(prompt.len() + i - 1) * vocab..][..vocab];
            let best = row.iter().copied().fold(f32::MIN, f32::max);
            let largest = row.iter().fold(0.0f32, |top, x| top.max(x.abs()));
            (best - row[id as usize]) / largest
        })
        .collect()
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn batches_write_what_the_cpu_writes() {
    let pair = pair(&random(6, 2, 64));
    let masks = plan(&pair);
    // Seven prompts through three requests.
    let prompts: Vec<Vec<u32>> = [5, 300, 64, 1, 130, 77, 222]
        .iter()
        .zip(0..)
        .map(|(&len, seed)| tokens(len, 504, seed))
        .collect();
    let mut engine = Engine::new(pair.gpu.clone(), Some(&masks), options(3, 128)).unwrap();
    let written = engine.generate_batch(&prompts, 40, &[]).unwrap();
    let (mut equal, mut worst) = (0, 0.0f32);
    for (prompt, written) in prompts.iter().zip(&written) {
        assert_eq!(written.len(), 40);
        for below in below_best(&pair, &masks, prompt, written) {
            // Two logits may each be off.
            assert!(
                below <= 2.0 * SIXTEEN.largest as f32,
                "prompt of {} tokens",
                prompt.len()
            );
            equal += u32::from(below == 0.0);
            worst = worst.max(below);
        }
    }
    println!(
        "{equal} of 280 tokens are the CPU's best, the worst {worst:.2e} of the largest logit below"
    );
    assert!(equal >= 230, "{equal}");
    let mut wrong = written[0].clone();
    wrong.rotate_left(1);
    let wrong = below_best(&pair, &masks, &prompts[0], &wrong);
    assert!(
        wrong
            .iter()
            .any(|&below| below > 2.0 * SIXTEEN.largest as f32)
    );
    assert_eq!(
        engine.generate_batch(&prompts, 40, &[]).unwrap(),
        written,
        "the same again, now from the recorded graph alone"
    );

    // Stops, limits, and a context that ends.
    let stop = written[1][7];
    let first = written[1].iter().position(|&id| id == stop).unwrap();
    let stopped = engine.generate_batch(&prompts, 40, &[stop]).unwrap();
    assert_eq!(stopped[1], written[1][..first]);
    let short = engine.generate_batch(&prompts, 3, &[]).unwrap();
    assert!(short.iter().zip(&written).all(|(a, b)| a[..] == b[..3]));
    let long = tokens(CONTEXT as usize - 2, 504, 9);
    let ends = engine.generate_batch(&[long], 40, &[]).unwrap();
    assert_eq!(ends[0].len(), 3);
    assert_eq!(
        engine.generate_batch(&prompts, 0, &[]).unwrap(),
        vec![Vec::<u32>::new(); 7]
    );
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn likelihoods_are_those_of_the_cpus_logits() {
    let pair = pair(&random(4, 4, 128));
    let masks = plan(&pair);
    let texts: Vec<(Vec<u32>, Vec<u32>)> = [(5, 1), (200, 30), (64, 64), (1, 300), (90, 0)]
        .iter()
        .zip(0..)
        .map(|(&(prompt, continuation), seed)| {
            (
                tokens(prompt, 504, seed),
                tokens(continuation, 504, 50 + seed),
            )
        })
        .collect();
    let mut engine = Engine::new(pair.gpu.clone(), Some(&masks), options(2, 100)).unwrap();
    let scored = engine.log_likelihoods(&texts).unwrap();
    for ((prompt, continuation), scored) in texts.iter().zip(&scored) {
        let text: Vec<u32> = prompt.iter().chain(continuation).copied().collect();
        let logits = pair.cpu.logits(&text, Some(&masks), &()).unwrap();
        let (mut expected, mut hits) = (Vec::new(), true);
        for (i, &id) in continuation.iter().enumerate() {
            let row = &logits[(prompt.len() + i - 1) * 504..][..504];
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
            expected.push(f64::from(row[id as usize] - top) - sum.ln());
            hits &= row[id as usize] >= top;
        }
        let result = compare(&scored.tokens, &expected, Tolerance::new(0.1, 0.02));
        println!("{} tokens: error {:.2e}", expected.len(), result.max_error);
        let _ = result.assert("log-likelihoods");
        assert_eq!(scored.greedy, hits);
        assert!(
            (scored.sum() - expected.iter().sum::<f64>()).abs()
                < 0.05 * expected.len() as f64 + 1e-9
        );
    }
    // What the engine writes itself is greedy.
    let prompt = tokens(150, 504, 77);
    let written = engine
        .generate_batch(std::slice::from_ref(&prompt), 12, &[])
        .unwrap();
    let scored = engine
        .log_likelihoods(&[(prompt, written[0].clone())])
        .unwrap();
    assert_eq!(scored[0].tokens.len(), 12);
}

/// Gold tokens are read with the prompt and taken back: scores are those of scoring alone, texts those of generation alone.
#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn answers_are_texts_and_likelihoods() {
    let pair = pair(&random(6, 2, 64));
    let masks = plan(&pair);
    let prompts: Vec<Vec<u32>> = [200, 9, 64, 333, 150]
        .iter()
        .zip(0..)
        .map(|(&len, seed)| tokens(len, 504, seed))
        .collect();
    let gold: Vec<Vec<u32>> = [64, 0, 1, 30, 47]
        .iter()
        .zip(30..)
        .map(|(&len, seed)| tokens(len, 504, seed))
        .collect();
    // As many requests as prompts, and one chunk for each way to read: rows are the same in both.
    let mut engine = Engine::new(pair.gpu.clone(), Some(&masks), options(5, 1024)).unwrap();
    let questions: Vec<Question<'_>> = prompts
        .iter()
        .zip(&gold)
        .zip([12, 5, 0, 1, 20])
        .map(|((prompt, gold), max_tokens)| Question {
            prompt,
            gold,
            max_tokens,
        })
        .collect();
    let answers = engine.answer_batch(&questions, &[], None).unwrap();
    let texts: Vec<(Vec<u32>, Vec<u32>)> = prompts.iter().cloned().zip(gold.clone()).collect();
    let scored = engine.log_likelihoods(&texts).unwrap();
    for ((question, answer), scored) in questions.iter().zip(&answers).zip(&scored) {
        assert_eq!(answer.tokens.len(), question.max_tokens);
        assert_eq!(&answer.gold, scored);
        for below in below_best(&pair, &masks, question.prompt, &answer.tokens) {
            assert!(below <= 2.0 * SIXTEEN.largest as f32, "{below}");
        }
    }
    assert!(
        engine
            .answer_batch(
                &[Question {
                    gold: &[1; 65],
                    ..questions[0]
                }],
                &[],
                None
            )
            .is_err()
    );
}

/// An answer that is decided ends soon after; the others are what they were, also those of a later batch.
#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn decided_answers_end_early_and_alone() {
    let pair = pair(&random(6, 2, 64));
    let prompts: Vec<Vec<u32>> = (0..5).map(|seed| tokens(60, 504, seed)).collect();
    let questions: Vec<Question<'_>> = prompts
        .iter()
        .map(|prompt| Question {
            prompt,
            gold: &[],
            max_tokens: 80,
        })
        .collect();
    let mut engine = Engine::new(pair.gpu.clone(), None, options(3, 1024)).unwrap();
    let whole = engine.answer_batch(&questions, &[], None).unwrap();
    // The second of the first three, and the last of the other two.
    let decided = |number: usize, tokens: &[u32]| {
        assert_eq!(tokens, &whole[number].tokens[..tokens.len()]);
        [1, 4].contains(&number) && tokens.len() > 20
    };
    let some = engine
        .answer_batch(&questions, &[], Some(&decided))
        .unwrap();
    for (number, (answer, whole)) in some.iter().zip(&whole).enumerate() {
        assert_eq!(answer.tokens, whole.tokens[..answer.tokens.len()]);
        let len = answer.tokens.len();
        if [1, 4].contains(&number) {
            assert!(len > 20 && len <= 20 + 17, "{len}");
        } else {
            assert_eq!(len, 80);
        }
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn predicted_bytes_are_allocated() {
    let pair = pair(&random(6, 2, 24));
    let masks = plan(&pair);
    let dense = ModelMasks::dense(3, 2);
    for format in [KvFormat::Sixteen, KvFormat::Int8] {
        for masks in [&masks, &dense] {
            let options = EngineOptions {
                format,
                ..options(5, 96)
            };
            let engine = Engine::new(pair.gpu.clone(), Some(masks), options).unwrap();
            let predicted = pair
                .gpu
                .kv_shape()
                .batch_bytes(masks, CONTEXT, 5, 96, format)
                .unwrap();
            assert_eq!(engine.kv_bytes(), predicted);
        }
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn what_does_not_fit_is_refused() {
    let pair = pair(&random(6, 2, 64));
    let wrong = ModelMasks::dense(4, 2);
    assert!(matches!(
        Engine::new(pair.gpu.clone(), Some(&wrong), options(2, 64)),
        Err(EngineError::Model(LmError::Mask(_)))
    ));
    assert!(Engine::new(pair.gpu.clone(), None, options(0, 64)).is_err());
    assert!(Engine::new(pair.gpu.clone(), None, options(1, 0)).is_err());
    let mut engine = Engine::new(pair.gpu.clone(), None, options(2, 64)).unwrap();
    assert!(matches!(
        engine.generate_batch(&[vec![]], 3, &[]),
        Err(EngineError::Model(LmError::NoTokens))
    ));
    assert!(matches!(
        engine.generate_batch(&[vec![504]], 3, &[]),
        Err(EngineError::Model(LmError::BadToken { id: 504, .. }))
    ));
    assert!(matches!(
        engine.generate_batch(&[vec![1; CONTEXT as usize + 1]], 3, &[]),
        Err(EngineError::Model(LmError::ContextFull { .. }))
    ));
    assert!(engine.feed(&[1]).is_err(), "nothing was begun");
    assert!(engine.generate_batch(&[vec![1]], 3, &[0; 17]).is_err());
    // And still serves.
    assert_eq!(
        engine.generate_batch(&[vec![1]], 3, &[]).unwrap()[0].len(),
        3
    );
}
