//! What a head may not see changes nothing, by whichever kernels and however keys and values are stored.

use bytemuck::cast_slice;
use moa_format::{DType, ModelConfig};
use moa_mask::{KvFormat, RingLayout, SLACK, memory};
use moa_runtime_web::{DecodeKernels, Engine, EngineOptions, Setup, Variant};
use moa_tests::tiny::{self, TinyModel};
use pollster::block_on;

use crate::{CONTEXT, ids, logits, prefill};

/// Two channels that are NaN, or a scale that is.
const fn nan_word(format: KvFormat) -> u32 {
    match format {
        KvFormat::Sixteen => 0x7e00_7e00,
        KvFormat::Int8 => 0x7fc0_0000,
    }
}

/// Overwrites every slot that the query at `q_pos` and later ones may not see.
fn poison(engine: &Engine, written: u32, q_pos: u32) -> usize {
    let setup = engine.setup();
    let format = setup.kv_format();
    let row_bytes = format.row_bytes(setup.heads().head_dim);
    let row = vec![nan_word(format); usize::try_from(row_bytes / 4).unwrap()];
    let mut slots = 0;
    for layer in 0..setup.masks().layers() {
        let masks = setup.masks().layer(layer);
        let (offsets, _) = memory::slot_offsets(masks, setup.context(), SLACK);
        let (k, v) = engine.kv_buffers(layer).unwrap();
        for (&mask, offset) in masks.iter().zip(offsets) {
            let layout = RingLayout::new(mask, setup.context(), SLACK);
            for slot in 0..layout.slots() {
                let seen = layout
                    .position(slot, written)
                    .is_some_and(|k_pos| mask.attends(q_pos, k_pos));
                if !seen {
                    for buffer in [k, v] {
                        engine.gpu().queue().write_buffer(
                            buffer,
                            u64::from(offset + slot) * row_bytes,
                            cast_slice(&row),
                        );
                    }
                    slots += 1;
                }
            }
        }
    }
    slots
}

/// Weights in q4, and channels that four threads share: every variant has kernels of its own.
fn model() -> TinyModel {
    let config = ModelConfig {
        head_dim: 32,
        ..tiny::config(3, 3)
    };
    let plan = tiny::plan(&config, 8, &[24, 1024, 150, 60, 9]);
    TinyModel::new(config, plan, DType::Q4, DType::F32, 1)
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn forbidden_slots_change_nothing() {
    let model = model();
    let everything: Variant = "subgroups+dp4a+packed".parse().unwrap();
    for (kernels, variant, format) in [
        (DecodeKernels::Separate, Variant::BASE, KvFormat::Sixteen),
        (DecodeKernels::Separate, Variant::BASE, KvFormat::Int8),
        (DecodeKernels::Fused, Variant::BASE, KvFormat::Sixteen),
        (DecodeKernels::Fused, everything, KvFormat::Sixteen),
        (DecodeKernels::Fused, everything, KvFormat::Int8),
    ] {
        let case = format!("{kernels:?}, {variant}, {format:?}");
        let bundle = &model.bundle;
        let setup = Setup::new(bundle.manifest.clone(), bundle.plan.clone(), CONTEXT)
            .unwrap()
            .with_kv_format(format);
        let options = EngineOptions {
            decode_kernels: Some(kernels),
            variant,
            ..EngineOptions::default()
        };
        changes_nothing(&mut bundle.engine_of(setup, options), &case);
    }
}

fn changes_nothing(engine: &mut Engine, case: &str) {
    let prompt = ids(5, 500, engine.setup().config().vocab_size);
    let mut run = |poisoned: bool| {
        engine.reset();
        let mut slots = 0;
        let mut trouble = |engine: &Engine, len| {
            if poisoned {
                slots += poison(engine, len, len);
            }
        };
        trouble(engine, 0);
        prefill(engine, &prompt[..300]);
        trouble(engine, 300);
        prefill(engine, &prompt[300..]);
        trouble(engine, 500);
        let chosen = block_on(engine.decode(5)).unwrap();
        trouble(engine, 504);
        let after = logits(engine);
        assert_eq!(poisoned, slots > 1000, "{case}: {slots} slots");
        (chosen, after)
    };
    let (clean_ids, clean) = run(false);
    let (ids, poisoned) = run(true);
    assert_eq!(clean_ids, ids, "{case}");
    assert_eq!(clean, poisoned, "{case}: bit for bit");
    // The control: one visible slot more, and it shows.
    engine.reset();
    prefill(engine, &prompt);
    assert!(poison(engine, 500, 540) > 0);
    block_on(engine.decode(1)).unwrap();
    assert!(
        logits(engine).iter().any(|logit| logit.is_nan()),
        "{case}: NaN in a visible slot must show"
    );
}
