//! Sessions of a small random model whose rings wrap: chunks, turns, rewinds, and NaN where nobody looks.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the sizes of test cases are small"
)]

use moa_mask::{HeadMask, HeadRule, MaskGrid, ModelMasks};

use crate::random_model::model;
use crate::{Cpu, KvPrecision, LmError, Session};

const CONTEXT: u32 = 700;

/// Spans from a ring that wraps many times to one that holds the whole text.
fn plan() -> ModelMasks {
    let exact = |span| HeadRule::Exact { span };
    let rules = [
        vec![exact(24), exact(136)],
        vec![HeadRule::DENSE, exact(17)],
    ];
    ModelMasks::from_rules(&rules, CONTEXT, MaskGrid::new(16, 8).unwrap()).unwrap()
}

fn ids(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i + 7 * i) % 101).collect()
}

/// Largest difference of two rows of logits; NaN shows as infinity.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| {
            if d.is_nan() {
                f32::INFINITY
            } else {
                d.max(max)
            }
        })
}

#[test]
fn chunks_and_turns_give_what_one_prefill_and_the_whole_text_give() {
    let (lm, ids) = (model(), ids(650));
    for masks in [None, Some(&plan())] {
        let whole = lm.logits(&ids, masks, &()).unwrap();
        let last = &whole[649 * 101..];
        assert!(
            last.iter().any(|logit| logit.abs() > 0.5),
            "logits say something"
        );
        let mut worst = 0.0f32;
        for chunk in [650, 300, 64, 7, 1] {
            let mut session = lm.session(masks, CONTEXT).unwrap();
            let mut fed = 0;
            for chunk in ids.chunks(chunk) {
                let logits = session.prefill(chunk).unwrap();
                fed += chunk.len();
                worst = worst.max(distance(&logits, &whole[(fed - 1) * 101..fed * 101]));
            }
            assert_eq!(session.len(), 650);
        }
        let mut turns = lm.session(masks, CONTEXT).unwrap();
        for turn in [&ids[..211], &ids[211..212], &ids[212..]] {
            turns.prefill(turn).unwrap();
        }
        worst = worst.max(distance(
            &turns.decode(5).unwrap(),
            &lm.session(masks, CONTEXT)
                .unwrap()
                .prefill(&[&ids[..], &[5]].concat())
                .unwrap(),
        ));
        println!("chunks and turns: largest difference {worst:.2e} of 1e-4");
        assert!(worst < 1e-4, "{worst}");
    }
    // The rings matter: a window one token wider is another model.
    let wider = ModelMasks::uniform(
        2,
        2,
        HeadMask {
            sink: 16,
            window: 9,
        },
    );
    let narrow = ModelMasks::uniform(
        2,
        2,
        HeadMask {
            sink: 16,
            window: 8,
        },
    );
    let run = |masks: &ModelMasks| {
        lm.session(Some(masks), CONTEXT)
            .unwrap()
            .prefill(&ids)
            .unwrap()
    };
    assert!(distance(&run(&wider), &run(&narrow)) > 1e-3);
}

#[test]
fn rewinding_is_exact() {
    let (lm, ids) = (model(), ids(600));
    let plan = plan();
    let mut straight = lm.session(Some(&plan), CONTEXT).unwrap();
    straight.prefill(&ids[..400]).unwrap();
    let mut session = lm.session(Some(&plan), CONTEXT).unwrap();
    session.prefill(&ids[..400]).unwrap();

    // Tokens that are taken back leave no trace, one by one or in one chunk, more than once.
    for &id in &ids[500..540] {
        session.decode(id).unwrap();
    }
    assert!(matches!(
        session.rewind(65),
        Err(LmError::RewindTooFar {
            asked: 65,
            most: 64
        })
    ));
    session.rewind(40).unwrap();
    assert_eq!(
        session.rewindable(),
        24,
        "counted from the most that was ever there"
    );
    session.prefill(&ids[550..570]).unwrap();
    session.rewind(20).unwrap();
    for &id in &ids[400..450] {
        assert_eq!(
            session.decode(id).unwrap(),
            straight.decode(id).unwrap(),
            "bit-equal"
        );
    }

    // As far back as the slack goes, and no further.
    let mut far = lm.session(Some(&plan), CONTEXT).unwrap();
    far.prefill(&ids[..464]).unwrap();
    far.rewind(64).unwrap();
    assert!(matches!(
        far.rewind(1),
        Err(LmError::RewindTooFar { asked: 1, most: 0 })
    ));
    let mut straight = lm.session(Some(&plan), CONTEXT).unwrap();
    straight.prefill(&ids[..400]).unwrap();
    let difference = distance(&far.decode(3).unwrap(), &straight.decode(3).unwrap());
    assert!(difference < 1e-4, "{difference}");
}

/// Fills the slots of every key that the query at `session.len` will not see. Returns how many there were.
fn poison(session: &mut Session<'_, Cpu>) -> usize {
    let mut poisoned = 0;
    let next = session.len;
    for (layer, cache) in session.caches.iter_mut().enumerate() {
        for (kv_head, (layout, &offset)) in
            cache.layouts.iter().zip(&cache.slot_offsets).enumerate()
        {
            let mask = session.masks.layer(layer)[kv_head];
            for slot in 0..layout.slots() {
                let seen = layout
                    .position(slot, session.len)
                    .is_some_and(|k_pos| mask.attends(next, k_pos));
                if !seen {
                    let at = (offset + slot as usize) * 8;
                    cache.k[at..at + 8].fill(f32::NAN);
                    cache.v[at..at + 8].fill(f32::NAN);
                    poisoned += 1;
                }
            }
        }
    }
    poisoned
}

#[test]
fn nan_in_forbidden_slots_changes_no_bit() {
    let (lm, ids) = (model(), ids(400));
    let plan = plan();
    for len in [3, 60, 399] {
        let (mut clean, mut dirty) = (
            lm.session(Some(&plan), CONTEXT).unwrap(),
            lm.session(Some(&plan), CONTEXT).unwrap(),
        );
        clean.prefill(&ids[..len]).unwrap();
        dirty.prefill(&ids[..len]).unwrap();
        assert!(poison(&mut dirty) > 64);
        // One token, then a chunk, whose own keys replace what was poisoned where they are seen.
        assert_eq!(clean.decode(9).unwrap(), dirty.decode(9).unwrap());
        poison(&mut dirty);
        let (a, b) = (
            clean.prefill(&ids[..40]).unwrap(),
            dirty.prefill(&ids[..40]).unwrap(),
        );
        assert_eq!(a, b);
        assert!(a.iter().all(|logit| logit.is_finite()));
    }
    // The control: one visible slot is enough to spoil the output.
    let mut spoiled = lm.session(Some(&plan), CONTEXT).unwrap();
    spoiled.prefill(&ids).unwrap();
    spoiled.caches[0].v[0] = f32::NAN;
    assert!(
        spoiled
            .decode(9)
            .unwrap()
            .iter()
            .any(|logit| logit.is_nan())
    );
}

#[test]
fn the_context_ends_where_it_was_declared() {
    let lm = model();
    let mut session = lm.session(None, 10).unwrap();
    assert!(matches!(
        session.prefill(&ids(11)),
        Err(LmError::ContextFull {
            len: 0,
            more: 11,
            context: 10
        })
    ));
    session.prefill(&ids(9)).unwrap();
    session.decode(1).unwrap();
    assert!(matches!(
        session.decode(1),
        Err(LmError::ContextFull {
            len: 10,
            more: 1,
            context: 10
        })
    ));
    assert!(session.prefill(&[]).is_err());
    session.rewind(4).unwrap();
    session.prefill(&[1, 2, 3, 4]).unwrap();
    assert!(lm.session(None, 0).is_err());
    assert!(lm.session(Some(&ModelMasks::dense(1, 2)), 10).is_err());
    let bytes = session.kv_bytes().unwrap();
    assert_eq!(bytes.cache, 2 * 2 * 10 * 8 * 2 * 4);
}

#[test]
fn an_eight_bit_cache_changes_little_and_only_while_it_is_asked_for() {
    let lm = model();
    let ids: Vec<u32> = (0..80).map(|i| (i * 37 + 5) % 101).collect();
    let full = lm.logits(&ids, None, &()).unwrap();
    lm.set_kv_precision(KvPrecision::Int8);
    let rounded = lm.logits(&ids, None, &()).unwrap();
    let mut session = lm.session(None, 100).unwrap();
    let last = session.prefill(&ids).unwrap();
    lm.set_kv_precision(KvPrecision::Full);
    assert_eq!(lm.logits(&ids, None, &()).unwrap(), full);
    let largest = |values: &[f32]| {
        values
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()))
    };
    let distance = |a: &[f32], b: &[f32]| {
        let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        largest(&difference)
    };
    let off = distance(&full, &rounded) / largest(&full);
    assert!(off > 1e-5 && off < 0.05, "{off}");
    // Sessions round as whole texts do.
    let tail = &rounded[rounded.len() - last.len()..];
    assert!(distance(tail, &last) < 1e-3 * largest(&full));
}
