//! What a host builds conversations from: copies of the rings that take an earlier turn up, and tokens that it chooses.

use moa_format::DType;
use moa_reference::argmax::argmax;
use moa_runtime_web::{Engine, EngineError, EngineOptions};
use pollster::block_on;

use crate::{CONTEXT, ids, logits, model, prefill};

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn a_copy_of_the_rings_takes_an_earlier_turn_up_exactly() {
    let model = model(DType::F32);
    let prompt = ids(6, 400, model.config().vocab_size);
    let first = ids(7, 30, model.config().vocab_size);
    let second = ids(8, 90, model.config().vocab_size);
    let layers = model.masks(CONTEXT).layers();
    let mut engine = model.engine(CONTEXT, EngineOptions::default());
    // When some rings have wrapped, and when all but the widest have.
    for len in [130, 400] {
        engine.reset();
        prefill(&mut engine, &prompt[..len]);
        let copy = block_on(engine.copy_rings()).unwrap();
        let saved: Vec<Vec<u8>> = (0..layers)
            .map(|layer| block_on(engine.save_layer(layer)).unwrap())
            .collect();
        let (at, longest) = engine.position();
        assert_eq!((at as usize, copy.len()), (len, at));
        let bytes: usize = saved.iter().map(Vec::len).sum();
        assert_eq!(copy.bytes(), bytes as u64);
        prefill(&mut engine, &first);
        let expected = logits(&mut engine);

        // Far beyond the slack, and back.
        prefill(&mut engine, &second);
        engine.restore_rings(&copy).unwrap();
        assert_eq!(engine.len(), at);
        assert!(matches!(
            block_on(engine.decode(1)),
            Err(EngineError::NoLogits)
        ));
        prefill(&mut engine, &first);
        assert_eq!(
            logits(&mut engine),
            expected,
            "{len} tokens, on the device: bit for bit"
        );

        // By way of the host, into an engine that has seen something else.
        engine.reset();
        prefill(&mut engine, &second);
        let restore = |engine: &mut Engine, saved: &[Vec<u8>]| {
            for (layer, bytes) in saved.iter().enumerate() {
                engine.restore_layer(layer, longest, bytes).unwrap();
            }
            engine.set_position(at, longest).unwrap();
        };
        restore(&mut engine, &saved);
        prefill(&mut engine, &first);
        assert_eq!(logits(&mut engine), expected, "{len} tokens, from the host");

        // The control: the values of the first head's first token, negated.
        let mut damaged = saved.clone();
        let half = damaged[0].len() / 2;
        for value in damaged[0][half..].chunks_exact_mut(2).take(8) {
            value[1] ^= 0x80;
        }
        restore(&mut engine, &damaged);
        prefill(&mut engine, &first);
        assert_ne!(logits(&mut engine), expected, "{len} tokens, damaged");
    }
    assert!(engine.restore_layer(0, 400, &[0; 6]).is_err());
    assert!(engine.restore_layer(layers, 400, &[]).is_err());
    assert!(engine.set_position(5, 4).is_err());
    assert!(engine.set_position(0, CONTEXT + 1).is_err());
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn a_token_chosen_by_the_caller_goes_on_as_one_of_the_engine() {
    let model = model(DType::F32);
    let prompt = ids(9, 50, model.config().vocab_size);
    let mut engine = model.engine(CONTEXT, EngineOptions::default());
    prefill(&mut engine, &prompt);
    let greedy = block_on(engine.decode(4)).unwrap();
    engine.reset();
    prefill(&mut engine, &prompt);
    for &id in &greedy {
        assert_eq!(argmax(&logits(&mut engine)), id);
        engine.choose(id).unwrap();
        assert_eq!(engine.pending(), Some(id));
    }
    assert!(matches!(
        engine.choose(model.config().vocab_size),
        Err(EngineError::BadToken { .. })
    ));
    engine.reset();
    assert!(matches!(engine.choose(0), Err(EngineError::NoLogits)));
}
