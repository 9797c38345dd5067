//! Engines that share one set of weights on one device: each is what it would be alone, and none takes another's memory.

use moa_format::{DType, Plan};
use moa_mask::MaskGrid;
use moa_runtime_web::{Engine, EngineError, EngineOptions, Setup, Weights};
use moa_tests::tiny::TinyModel;
use pollster::block_on;

use crate::{CONTEXT, ids, logits, model, prefill};

fn shared(weights: &Weights, plan: Plan, context: u32) -> Result<Engine, EngineError> {
    let setup = Setup::new(weights.manifest().clone(), plan, context)?;
    let mut engine = block_on(weights.engine(setup, EngineOptions::default()))?;
    block_on(engine.finish_loading())?;
    Ok(engine)
}

/// Logits after `prompt` of an engine that shares nothing.
fn alone(model: &TinyModel, plan: &Plan, context: u32, prompt: &[u32]) -> Vec<f32> {
    let options = EngineOptions::default();
    let mut engine = model.bundle.engine_with(plan, context, options);
    prefill(&mut engine, prompt);
    logits(&mut engine)
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn engines_share_weights_and_nothing_else() {
    let model = model(DType::Q4);
    let own = model.bundle.plan.clone();
    let dense = Plan::dense(model.config(), MaskGrid::default());
    let prompt = ids(11, 300, model.config().vocab_size);
    let other = ids(12, 200, model.config().vocab_size);
    let (as_own, as_dense) = (
        alone(&model, &own, CONTEXT, &prompt),
        alone(&model, &dense, 2 * CONTEXT, &other),
    );

    let mut first = model.engine(CONTEXT, EngineOptions::default());
    let weights = first.weights().unwrap();
    let mut second = shared(&weights, dense.clone(), 2 * CONTEXT).unwrap();
    // Prompts in turns: neither disturbs the other.
    let mut at = [0, 0];
    while at != [prompt.len(), other.len()] {
        at[0] += block_on(first.prefill(&prompt[at[0]..])).unwrap();
        at[1] += block_on(second.prefill(&other[at[1]..])).unwrap();
    }
    assert_eq!(logits(&mut first), as_own, "bit for bit");
    assert_eq!(logits(&mut second), as_dense, "bit for bit");

    // Weights are counted where they were made.
    let bytes: usize = model.bundle.shards.iter().map(Vec::len).sum();
    assert_eq!(first.ledger()["weights"], bytes as u64);
    assert!(!second.ledger().contains_key("weights"));
    let report = second.setup().kv_report().unwrap();
    assert_eq!(second.ledger()["kvCache"], report.cache);

    // The first one goes, its weights stay for as long as somebody reads them.
    first.destroy();
    drop(first);
    second.reset();
    prefill(&mut second, &other);
    assert_eq!(logits(&mut second), as_dense);
    let mut third = shared(&weights, own, CONTEXT).unwrap();
    drop(weights);
    second.destroy();
    drop(second);
    prefill(&mut third, &prompt);
    assert_eq!(logits(&mut third), as_own);
    // The control: the last one's weights go with it.
    third.destroy();
    assert!(block_on(third.prefill(&[1])).is_err());
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn only_the_same_model_shares_its_weights() {
    let model = model(DType::F32);
    let mut engine = model.engine(CONTEXT, EngineOptions::default());
    let weights = engine.weights().unwrap();
    let shard = &model.bundle.shards[0];
    let written = engine.write_shard(0, 0, shard);
    assert!(matches!(written, Err(EngineError::BadChunk { .. })));

    let other = crate::model(DType::F16).bundle;
    let setup = Setup::new(other.manifest, other.plan, CONTEXT).unwrap();
    let refused = block_on(weights.engine(setup, EngineOptions::default()));
    assert!(matches!(refused, Err(EngineError::BadArgument { .. })));
}
