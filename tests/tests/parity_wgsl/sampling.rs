//! The choice of a token by chance against its twin: exactly, where the draw is not at an edge, and as a distribution.

use bytemuck::bytes_of;
use moa_mask::abi::{IN_PROMPT, SampleParams, StepState, WEIGHT_ONE};
use moa_reference::sample::{Choice, Seen, kept, penalized, sample};
use moa_shaders::{Dialect, HeadShape, Kernel};
use moa_tests::gpu::{Data, POISON, reductions, test_gpu, test_gpu_in};
use moa_tests::random::Random;

use crate::rows::whole_vectors;

/// Attention's shape, which this kernel does not use.
const SHAPE: HeadShape = HeadShape {
    heads: 1,
    kv_heads: 1,
    head_dim: 64,
};

const PLAIN: Choice = Choice {
    temperature: 1.0,
    top_k: 0,
    top_p: u32::MAX,
    min_weight: 0,
    seed: 11,
    repetition: 1.0,
    presence: 0.0,
    frequency: 0.0,
};

#[expect(clippy::cast_possible_truncation, reason = "what the host does")]
fn params(choice: Choice, dim: usize) -> SampleParams {
    let inverse = if choice.temperature == 0.0 {
        0.0
    } else {
        choice.temperature.recip()
    };
    SampleParams {
        dim: u32::try_from(dim).unwrap(),
        top_k: choice.top_k,
        top_p: choice.top_p,
        min_weight: choice.min_weight,
        inverse_temperature: inverse as f32,
        seed_low: choice.seed as u32,
        seed_high: (choice.seed >> 32) as u32,
        penalize: u32::from(
            (choice.repetition, choice.presence, choice.frequency) != (1.0, 0.0, 0.0),
        ),
        repetition: choice.repetition as f32,
        presence: choice.presence as f32,
        frequency: choice.frequency as f32,
        reserved: 0,
    }
}

/// The chosen token at `position`; what the kernel leaves behind is checked.
fn run(
    dialect: Dialect,
    logits: &[f32],
    seen: &[Seen],
    choice: Choice,
    position: u32,
    stops: &[u32],
) -> u32 {
    let before = StepState {
        start: position - 1,
        len: 1,
        step: 2,
        stopped: 0,
    };
    let counts: Vec<u32> = (0..logits.len())
        .map(|id| {
            let seen = seen.get(id).copied().unwrap_or_default();
            seen.generated | if seen.in_prompt { IN_PROMPT } else { 0 }
        })
        .collect();
    let outputs = test_gpu_in(dialect).run(
        Kernel::Sample,
        SHAPE,
        (1, 1),
        &[
            (
                "params",
                Data::Bytes(bytes_of(&params(choice, logits.len()))),
            ),
            ("state", Data::U32(&bytemuck::cast::<_, [u32; 4]>(before))),
            ("logits", Data::F32(&whole_vectors(logits))),
            ("tokens", Data::Poison(2)),
            ("ids", Data::Poison(4)),
            ("stops", Data::U32(stops)),
            ("counts", Data::U32(&counts)),
        ],
    );
    let id = outputs["tokens"][0];
    assert_eq!(outputs["ids"], [POISON, POISON, id, POISON]);
    let stopped = u32::from(stops[1..=stops[0] as usize].contains(&id));
    assert_eq!(outputs["state"], [position, 1 - stopped, 3, stopped]);
    let mut counted = counts;
    counted[id as usize] += 1;
    assert!(outputs["counts"] == counted, "one token more");
    id
}

fn of_two_to_the_32(part: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "below 2^32")]
    #[expect(clippy::cast_sign_loss, reason = "not negative")]
    let parts = (part * 2f64.powi(32)) as u32;
    parts
}

fn choices() -> Vec<(&'static str, Choice)> {
    let top_p = |p: f64| of_two_to_the_32(p);
    vec![
        ("plain", PLAIN),
        (
            "hot",
            Choice {
                temperature: 7.0,
                ..PLAIN
            },
        ),
        (
            "cold",
            Choice {
                temperature: 0.05,
                ..PLAIN
            },
        ),
        (
            "greedy",
            Choice {
                temperature: 0.0,
                ..PLAIN
            },
        ),
        ("top-k 1", Choice { top_k: 1, ..PLAIN }),
        (
            "top-k 40",
            Choice {
                top_k: 40,
                temperature: 3.0,
                ..PLAIN
            },
        ),
        (
            "top-p",
            Choice {
                top_p: top_p(0.9),
                temperature: 2.0,
                ..PLAIN
            },
        ),
        ("tiny top-p", Choice { top_p: 0, ..PLAIN }),
        (
            "min-p",
            Choice {
                min_weight: WEIGHT_ONE / 20,
                temperature: 2.0,
                ..PLAIN
            },
        ),
        (
            "everything",
            Choice {
                temperature: 1.7,
                top_k: 50,
                top_p: top_p(0.95),
                min_weight: WEIGHT_ONE / 200,
                seed: 1 << 40,
                repetition: 1.3,
                presence: 0.7,
                frequency: 0.2,
            },
        ),
        (
            "greedy with penalties",
            Choice {
                temperature: 0.0,
                repetition: 1.5,
                presence: 2.0,
                ..PLAIN
            },
        ),
    ]
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn tokens_are_the_twins() {
    let dialects = reductions();
    let mut random = Random::new(77);
    let (mut clear, mut all, mut distinct) = (0, 0, std::collections::BTreeSet::new());
    for dim in [1usize, 3, 64, 1001, 5000, 49_152] {
        for (name, choice) in choices() {
            let mut logits = random.spiked(dim, 6.0);
            if dim > 3 {
                logits[random.below(4) as usize] = f32::NAN;
                // Equal ones stay together.
                let largest = logits.iter().copied().fold(0.0, f32::max);
                logits[dim / 2] = largest;
            }
            let seen: Vec<Seen> = (0..dim)
                .map(|_| Seen {
                    in_prompt: random.below(5) == 0,
                    generated: random.below(7).saturating_sub(4),
                })
                .collect();
            let draws = if dim > 10_000 { 2 } else { 6 };
            for position in 1..=draws {
                let expected = sample(&logits, &seen, choice, position);
                let dialect = dialects[position as usize % dialects.len()];
                let actual = run(dialect, &logits, &seen, choice, position, &[0]);
                all += 1;
                // Weights come from an f32 exp: an edge may lie elsewhere by some 1e-6 of the mass.
                if expected.margin > 2e-5 {
                    assert_eq!(
                        actual, expected.id,
                        "{name}, {dim} logits, position {position}"
                    );
                    clear += 1;
                    distinct.insert(actual);
                }
            }
        }
    }
    println!(
        "sample: {clear} of {all} draws were clear, {} distinct tokens",
        distinct.len()
    );
    assert!(clear * 10 > all * 8 && distinct.len() > 30);
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn draws_follow_the_distribution() {
    // 40 tokens under top-p, 1,500 positions: chi-square of the tokens with an expectation of five or more.
    let mut random = Random::new(5);
    let logits = random.spiked(40, 1.5);
    let choice = Choice {
        top_p: of_two_to_the_32(0.9),
        ..PLAIN
    };
    let kept = kept(&penalized(&logits, &[], choice), choice);
    let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut counts = [0u32; 40];
    let draws = 1500;
    for position in 1..=draws {
        counts[run(Dialect::BASE, &logits, &[], choice, position, &[0]) as usize] += 1;
    }
    let (mut chi_square, mut freedom) = (0.0, 0.0);
    for &(id, weight) in &kept {
        let expected = f64::from(draws) * f64::from(weight) / total;
        if expected >= 5.0 {
            chi_square += (f64::from(counts[id as usize]) - expected).powi(2) / expected;
            freedom += 1.0;
        }
    }
    assert!(
        kept.len() < 40 && freedom > 8.0,
        "{} kept, {freedom} counted",
        kept.len()
    );
    // Mean freedom, variance 2 * freedom: five deviations.
    assert!(
        chi_square < freedom + 5.0 * (2.0f64 * freedom).sqrt(),
        "{chi_square}"
    );
    let outside = counts
        .iter()
        .enumerate()
        .filter(|(id, _)| !kept.iter().any(|(kept, _)| *kept as usize == *id));
    assert!(
        outside.map(|(_, count)| count).sum::<u32>() == 0,
        "nothing that top-p leaves out"
    );
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn a_stop_token_ends_the_text() {
    let logits = [0.0f32, 9.0, 0.0, 0.0, 0.0];
    let greedy = Choice {
        temperature: 0.0,
        ..PLAIN
    };
    // What is behind the list does not count.
    for stops in [&[2u32, 4, 1][..], &[1, 1, 3], &[2, 0, 2, 1], &[0, 1]] {
        for dialect in reductions() {
            assert_eq!(run(dialect, &logits, &[], greedy, 9, stops), 1);
        }
    }
    // Where the text has ended, nothing is chosen.
    let ended = StepState {
        start: 8,
        len: 0,
        step: 1,
        stopped: 1,
    };
    for choice in [greedy, PLAIN] {
        let outputs = test_gpu().run(
            Kernel::Sample,
            SHAPE,
            (1, 1),
            &[
                ("params", Data::Bytes(bytes_of(&params(choice, 5)))),
                ("state", Data::U32(&bytemuck::cast::<_, [u32; 4]>(ended))),
                ("logits", Data::F32(&whole_vectors(&logits))),
                ("tokens", Data::Poison(2)),
                ("ids", Data::Poison(2)),
                ("stops", Data::U32(&[0])),
                ("counts", Data::U32(&[0; 5])),
            ],
        );
        assert_eq!(outputs["state"], [8, 0, 1, 1]);
        assert!(
            outputs["tokens"]
                .iter()
                .chain(&outputs["ids"])
                .all(|&word| word == POISON)
        );
        assert_eq!(outputs["counts"], [0; 5]);
    }
}
