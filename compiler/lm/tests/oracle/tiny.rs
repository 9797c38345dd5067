//! The tiny models: logits, losses, per-entry and joint influence, and masks that are wrong by one.

use moa_lm::{Estimator, LossKind, ProfileOptions, Sample, Targets};
use moa_mask::{MaskGrid, ModelMasks};
use moa_reference::compare::{Tolerance, compare};

use crate::fixture::{Oracle, exact_masks, tiny};

/// Ids and target positions of tiny-llama's oracle.
fn sample(oracle: &Oracle) -> Sample {
    let kept = oracle.u32("keep_target");
    Sample {
        ids: oracle.u32("ids"),
        targets: Targets::At(
            (0..)
                .zip(kept)
                .filter(|&(_, keep)| keep == 1)
                .map(|(position, _)| position)
                .collect(),
        ),
    }
}

fn plan(oracle: &Oracle) -> Vec<Vec<u32>> {
    oracle
        .u32("plan_spans")
        .chunks(2)
        .map(<[u32]>::to_vec)
        .collect()
}

#[test]
fn dense_logits_of_every_family_are_the_oracles() {
    for (name, allowed) in [
        ("tiny-llama", 2e-4),
        ("tiny-qwen2", 1e-3),
        ("tiny-llama3", 1e-3),
    ] {
        let oracle = Oracle::open(name);
        let expected = oracle.f64("dense_logits");
        let mut logits = tiny(name).logits(&oracle.u32("ids"), None, &()).unwrap();
        let error = compare(&logits, &expected, Tolerance::new(allowed, 0.0)).assert(name);
        println!("{name}: dense logits, largest error {error:.2e} of {allowed:.0e}");
        logits[7] += 2e-3;
        assert!(!compare(&logits, &expected, Tolerance::new(allowed, 0.0)).passed());
    }
}

#[test]
fn masked_logits_and_losses_are_the_oracles() {
    let (lm, oracle) = (tiny("tiny-llama"), Oracle::open("tiny-llama"));
    let sample = sample(&oracle);
    let spans = plan(&oracle);
    let masks = exact_masks(&spans, 8, 160);
    let allowed = Tolerance::new(2e-4, 0.0);
    let expected = oracle.f64("masked_logits");
    let logits = lm.logits(&sample.ids, Some(&masks), &()).unwrap();
    let error = compare(&logits, &expected, allowed).assert("masked logits");
    println!("tiny-llama: masked logits, largest error {error:.2e} of 2e-4");

    let dense_error = lm.loss(&sample, None, &()).unwrap() - oracle.f64("loss")[0];
    let masked_error = lm.loss(&sample, Some(&masks), &()).unwrap() - oracle.f64("masked_loss")[0];
    println!("tiny-llama: losses, errors {dense_error:.2e} and {masked_error:.2e} of 1e-5");
    assert!(dense_error.abs() < 1e-5 && masked_error.abs() < 1e-5);

    // A window one token wider or narrower, and no mask, are other models.
    for change in [1, -1] {
        let mut other = spans.clone();
        other[1][0] = other[1][0].checked_add_signed(change).unwrap();
        let logits = lm
            .logits(&sample.ids, Some(&exact_masks(&other, 8, 160)), &())
            .unwrap();
        assert!(!compare(&logits, &expected, allowed).passed());
    }
    assert!(
        !compare(
            &lm.logits(&sample.ids, None, &()).unwrap(),
            &expected,
            allowed
        )
        .passed()
    );
}

#[test]
fn influence_is_the_oracles() {
    let (lm, oracle) = (tiny("tiny-llama"), Oracle::open("tiny-llama"));
    let options = ProfileOptions {
        grid: MaskGrid::new(8, 8).unwrap(),
        blocks: Some(16),
        ..Default::default()
    };
    let influence = lm.influence(&sample(&oracle), &options, &()).unwrap();
    assert!((influence.loss - oracle.f64("loss")[0]).abs() < 1e-5);
    assert_eq!(
        (influence.layers, influence.kv_heads, influence.bins),
        (3, 2, 20)
    );

    let maps = influence.maps.as_ref().unwrap();
    for (name, actual) in [
        ("influence_abs_blocks", &maps.abs),
        ("influence_signed_blocks", &maps.signed),
    ] {
        let expected = oracle.f64(name);
        let allowed = Tolerance::of_largest(1e-3, &expected);
        let error = compare(actual, &expected, allowed).assert(name);
        println!(
            "tiny-llama: {name}, largest error {:.2e} of 1e-3 of the largest entry",
            error / allowed.abs * 1e-3
        );
        let mut changed = actual.clone();
        changed[23] += 2.0 * allowed.abs;
        assert!(!compare(&changed, &expected, allowed).passed());
    }

    // [layer, head, span] by query head; three share a KV head.
    let by_head = oracle.f64("window_effect_signed");
    let spans = oracle.u32("window_spans");
    let (mut expected, mut actual) = (Vec::new(), Vec::new());
    for layer in 0..3 {
        for kv_head in 0..2 {
            for (index, span) in spans.iter().enumerate() {
                let group = (0..3).map(|member| {
                    by_head[((layer * 6) + kv_head * 3 + member) * spans.len() + index]
                });
                expected.push(group.sum::<f64>());
                let bin = (span / 8 - 1) as usize;
                actual.push(
                    influence.curve(Estimator::JointSigned)[(layer * 2 + kv_head) * 20 + bin],
                );
            }
        }
    }
    let allowed = Tolerance::of_largest(1e-3, &expected);
    let error = compare(&actual, &expected, allowed).assert("window_effect_signed");
    println!(
        "tiny-llama: window_effect_signed, largest error {:.2e} of 1e-3 of the largest entry",
        error / allowed.abs * 1e-3
    );
    actual.rotate_left(1);
    assert!(
        !compare(&actual, &expected, allowed).passed(),
        "neighboring spans differ"
    );

    // What the five estimators owe each other.
    let [per_entry, abs, signed, positive, square] =
        Estimator::ALL.map(|estimator| influence.curve(estimator));
    for bin in 0..per_entry.len() {
        assert!((2.0 * positive[bin] - signed[bin] - abs[bin]).abs() <= 1e-12 * abs[bin]);
        assert!(abs[bin] >= signed[bin].abs() && square[bin] >= 0.0);
        if (bin + 1) % 20 != 0 {
            assert!(
                per_entry[bin] >= per_entry[bin + 1],
                "hiding less costs less"
            );
        } else {
            assert_eq!(
                (per_entry[bin], abs[bin], square[bin]),
                (0.0, 0.0, 0.0),
                "the whole text hides nothing"
            );
        }
    }
    // The map of one head, summed below the diagonal band, is what the curve hides.
    assert!(per_entry.iter().any(|&cost| cost > 0.0));
}

/// The profile at a plan says how the loss changes when a head gets another span: compare with the loss itself.
#[test]
fn the_profile_at_a_plan_predicts_small_changes_of_it() {
    let (lm, oracle) = (tiny("tiny-llama"), Oracle::open("tiny-llama"));
    let sample = sample(&oracle);
    let spans = plan(&oracle);
    let masks = exact_masks(&spans, 8, 160);
    let options = ProfileOptions {
        grid: MaskGrid::new(8, 1).unwrap(),
        at: Some(&masks),
        ..Default::default()
    };
    let influence = lm.influence(&sample, &options, &()).unwrap();
    assert!((influence.loss - oracle.f64("masked_loss")[0]).abs() < 1e-5);
    let signed = influence.curve(Estimator::JointSigned);
    let (mut error, mut change) = (0.0, 0.0);
    for layer in 0..3 {
        for kv_head in 0..2 {
            let at = spans[layer][kv_head];
            let curve = &signed[(layer * 2 + kv_head) * 160..][..160];
            assert!(
                curve[(at - 1) as usize].abs() < 1e-9,
                "staying costs nothing"
            );
            for span in [at - 1, at + 1] {
                let mut other = spans.clone();
                other[layer][kv_head] = span;
                let real = lm
                    .loss(&sample, Some(&exact_masks(&other, 8, 160)), &())
                    .unwrap()
                    - influence.loss;
                error += (curve[(span - 1) as usize] - real).abs();
                change += real.abs();
            }
        }
    }
    println!(
        "tiny-llama: first-order change at a plan, error {error:.2e} of a change of {change:.2e}"
    );
    assert!(error < 0.25 * change, "{error} {change}"); // measured 0.19: second-order terms of a random model
}

/// The square of a window's effect is the divergence that it causes: head by head, and at another temperature.
#[test]
fn squared_effects_are_divergences() {
    let (lm, oracle) = (tiny("tiny-llama"), Oracle::open("tiny-llama"));
    let ids = oracle.u32("ids");
    let sample = Sample::new(ids, 40);
    let profile = |temperature| {
        let options = ProfileOptions {
            grid: MaskGrid::new(8, 1).unwrap(),
            temperature,
            ..Default::default()
        };
        lm.influence(&sample, &options, &()).unwrap()
    };
    let (warm, hot) = (profile(None), profile(Some(2.0)));
    let span = 130;
    let (mut measured, mut predicted, mut hotter) = (0.0, 0.0, 0.0);
    for layer in 0..3 {
        for kv_head in 0..2 {
            let mut spans = vec![vec![160; 2]; 3];
            spans[layer][kv_head] = span;
            let real = lm
                .kl_to_dense(&sample, Some(&exact_masks(&spans, 8, 160)), &())
                .unwrap();
            let cost = |of: &moa_lm::Influence| {
                let bin = (layer * 2 + kv_head) * 160 + span as usize - 1;
                of.curve(Estimator::JointSquare)[bin]
            };
            println!(
                "layer {layer} head {kv_head}: divergence {real:.4e}, predicted {:.4e}, at 2 {:.4e}",
                cost(&warm),
                cost(&hot)
            );
            measured += real;
            predicted += cost(&warm);
            hotter += cost(&hot);
        }
    }
    // Labels are not the model's own, rows are not independent: the size is right, not the digits.
    for cost in [predicted, hotter] {
        assert!(
            cost > measured / 2.0 && cost < measured * 2.0,
            "{cost} {measured}"
        );
    }
}

#[test]
fn kl_to_dense_is_zero_and_flat_at_the_dense_model_only() {
    let (lm, oracle) = (tiny("tiny-llama"), Oracle::open("tiny-llama"));
    let sample = sample(&oracle);
    let masks = exact_masks(&plan(&oracle), 8, 160);
    let profile = |at: Option<&ModelMasks>, temperature| {
        let options = ProfileOptions {
            grid: MaskGrid::new(8, 8).unwrap(),
            at,
            loss: LossKind::KlToDense,
            temperature,
            ..Default::default()
        };
        lm.influence(&sample, &options, &()).unwrap()
    };
    let dense = profile(None, None);
    assert!(dense.loss.abs() < 1e-9, "{}", dense.loss);
    assert!(
        dense
            .curve(Estimator::JointAbs)
            .iter()
            .all(|&cost| cost < 1e-6)
    );
    let masked = profile(Some(&masks), None);
    let expected = lm.kl_to_dense(&sample, Some(&masks), &()).unwrap();
    assert!(masked.loss > 1e-4 && (masked.loss - expected).abs() < 1e-9);
    // Giving all heads everything back leads to the dense model: the first-order change points there. A divergence that were a
    // square would fall by twice itself, at any temperature.
    for of in [&masked, &profile(Some(&masks), Some(2.0))] {
        let back: f64 = (0..6)
            .map(|head| of.curve(Estimator::JointSigned)[head * 20 + 19])
            .sum();
        println!("all the way back: {back:.3e} of {expected:.3e}");
        assert!(back < -0.5 * expected && back > -4.0 * expected, "{back}");
    }
}

#[test]
fn nonsense_is_refused() {
    let lm = tiny("tiny-llama");
    let dense = ModelMasks::dense(3, 3);
    assert!(
        lm.logits(&[1, 2], Some(&dense), &()).is_err(),
        "masks of another model"
    );
    assert!(lm.logits(&[], None, &()).is_err());
    assert!(lm.logits(&[1, 320], None, &()).is_err());
    assert!(lm.loss(&Sample::new(vec![1, 2], 2), None, &()).is_err());
    let blocks = ProfileOptions {
        blocks: Some(0),
        ..Default::default()
    };
    assert!(
        lm.influence(&Sample::new(vec![1, 2], 1), &blocks, &())
            .is_err()
    );
    let stop = std::sync::atomic::AtomicBool::new(true);
    let stopped = lm.influence(
        &Sample::new(vec![1, 2], 1),
        &ProfileOptions::default(),
        &stop,
    );
    assert!(matches!(stopped, Err(moa_lm::LmError::Cancelled)));
}
