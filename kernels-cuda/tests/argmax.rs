//! Greedy tokens, the state that they move on, and likelihoods, on a device. Shown as ignored without `MOA_TEST_CUDA=yes`.

#![expect(clippy::unwrap_used, reason = "tests")]

#[expect(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "only its random numbers are needed"
)]
mod twin;

use moa_kernels::{Argmax, Gpu, GreedyState};
use moa_reference::argmax::argmax;
use moa_reference::compare::{Tolerance, compare};
use moa_reference::cross_entropy::cross_entropy;
use twin::Random;

fn logits(rows: usize, vocab: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..rows * vocab).map(|_| random.normal() * 4.0).collect()
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn scores_agree_with_the_twins() {
    let gpu = Gpu::open(0, None).unwrap();
    let kernels = Argmax::new(&gpu).unwrap();
    for vocab in [1usize, 5, 513, 32_003] {
        let mut rows = logits(4, vocab, vocab as u64);
        // Ties, infinities, and NaN where nothing may choose it.
        let last = vocab - 1;
        rows[0] = 30.0;
        rows[last] = 30.0;
        rows[vocab..2 * vocab].fill(f32::NEG_INFINITY);
        rows[2 * vocab - 1] = -5.0;
        let greedy: Vec<u32> = rows.chunks(vocab).map(argmax).collect();
        let other = u32::try_from(vocab / 2).unwrap();
        let targets = [greedy[0], greedy[1], other, greedy[3]];
        let device = gpu.upload(&rows).unwrap();
        let mut likelihoods = gpu.upload(&[f32::NAN; 4]).unwrap();
        let mut hits = gpu.upload(&[7u32; 4]).unwrap();
        kernels
            .score(
                &gpu,
                &device,
                &gpu.upload(&targets).unwrap(),
                &mut likelihoods,
                &mut hits,
            )
            .unwrap();
        let expected: Vec<f64> = rows
            .chunks(vocab)
            .zip(&targets)
            .map(|(row, &target)| -cross_entropy(row, &[target]).0)
            .collect();
        let actual = gpu.download(&likelihoods).unwrap();
        let _ = compare(&actual, &expected, Tolerance::new(2e-5, 2e-6)).assert("log-likelihoods");
        let hit = |i: usize| u32::from(greedy[i] == targets[i]);
        assert_eq!(gpu.download(&hits).unwrap(), [0, 1, 2, 3].map(hit));
        let wrong = cross_entropy(&rows[..vocab], &[other]).0;
        if vocab > 1 {
            assert!(
                !compare(&actual[..1], &[-wrong], Tolerance::new(2e-5, 2e-6)).passed(),
                "another target's likelihood"
            );
        }
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn greedy_tokens_move_requests_on() {
    let gpu = Gpu::open(0, None).unwrap();
    let kernels = Argmax::new(&gpu).unwrap();
    let vocab = 1000;
    let mut rows = logits(4, vocab, 3);
    rows[2 * vocab..3 * vocab].fill(f32::NAN);
    rows[2 * vocab + 44] = -70.0;
    let tokens: Vec<u32> = rows.chunks(vocab).map(argmax).collect();
    assert_eq!(tokens[2], 44, "NaN is never chosen");
    // The first writes on, the second stops, the third has written all it may, the fourth is idle.
    let mut state = GreedyState {
        lens: gpu.upload(&[10u32, 20, 30, 0]).unwrap(),
        ids: gpu.upload(&[9u32; 4]).unwrap(),
        written: gpu.upload(&[1u32, 1, 2, 3]).unwrap(),
        limits: gpu.upload(&[3u32; 4]).unwrap(),
        tokens: gpu.upload(&[77u32; 12]).unwrap(),
        stops: gpu.upload(&[u32::MAX, tokens[1]]).unwrap(),
    };
    kernels
        .step(&gpu, &gpu.upload(&rows).unwrap(), &mut state)
        .unwrap();
    assert_eq!(gpu.download(&state.lens).unwrap(), [11, 0, 0, 0]);
    assert_eq!(
        gpu.download(&state.ids).unwrap(),
        [tokens[0], 9, tokens[2], 9]
    );
    assert_eq!(gpu.download(&state.written).unwrap(), [2, 1, 3, 3]);
    let mut expected = [77; 12];
    expected[1] = tokens[0];
    expected[2 * 3 + 2] = tokens[2];
    assert_eq!(gpu.download(&state.tokens).unwrap(), expected);
}
