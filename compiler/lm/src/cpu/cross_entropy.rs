//! Cross entropy and KL divergence of rows of logits, with their gradients in place.

use rayon::prelude::*;

use super::simd::{exp, exp_sum, max, vectorized};

/// Sum of `-log softmax(row)[target]`; each row becomes `scale * (softmax - onehot)`.
pub(super) fn cross_entropy(logits: &mut [f32], targets: &[u32], scale: f64) -> f64 {
    let vocab = logits.len() / targets.len().max(1);
    let losses: Vec<f64> = logits
        .par_chunks_exact_mut(vocab.max(1))
        .zip(targets)
        .map(|(row, &target)| {
            let target = target as usize;
            vectorized(
                #[inline(always)]
                || {
                    let score = row[target];
                    let row_max = max(row);
                    let row_sum = exp_sum(row, row_max);
                    let factor = to_f32(scale / row_sum);
                    for value in row.iter_mut() {
                        *value *= factor;
                    }
                    row[target] -= to_f32(scale);
                    row_sum.ln() + f64::from(row_max) - f64::from(score)
                },
            )
        })
        .collect();
    losses.iter().sum()
}

/// Sum of KL(softmax(teacher) || softmax(row)); each row of `logits` becomes
/// `scale * (softmax(row) - softmax(teacher))`.
pub(super) fn kl_divergence(teacher: &[f32], logits: &mut [f32], rows: usize, scale: f64) -> f64 {
    let vocab = logits.len() / rows.max(1);
    let losses: Vec<f64> = logits
        .par_chunks_exact_mut(vocab.max(1))
        .zip(teacher.par_chunks_exact(vocab.max(1)))
        .map(|(row, teacher)| {
            vectorized(
                #[inline(always)]
                || {
                    let (p_lse, q_lse) = (lse(teacher), lse(row));
                    let (p_shift, q_shift) = (to_f32(p_lse), to_f32(q_lse));
                    // What rounding the shifts to f32 leaves behind.
                    let rest = (p_lse - f64::from(p_shift)) - (q_lse - f64::from(q_shift));
                    let scale = to_f32(scale);
                    let mut loss = 0.0;
                    for (row, teacher) in row.chunks_mut(256).zip(teacher.chunks(256)) {
                        let mut sum = 0.0f32;
                        for (value, &teacher) in row.iter_mut().zip(teacher) {
                            let (log_p, log_q) = (teacher - p_shift, *value - q_shift);
                            let (p, q) = (exp(log_p), exp(log_q));
                            // A token that the teacher rules out adds nothing, even where its logit is -inf.
                            sum += if p > 0.0 { p * (log_p - log_q) } else { p };
                            *value = scale * (q - p);
                        }
                        loss += f64::from(sum);
                    }
                    loss - rest
                },
            )
        })
        .collect();
    losses.iter().sum()
}

/// Log-sum-exp of a row that stays as it is.
#[inline(always)]
fn lse(row: &[f32]) -> f64 {
    let row_max = max(row);
    let mut total = 0.0;
    for run in row.chunks(256) {
        let mut sum = 0.0f32;
        for &value in run {
            sum += exp(value - row_max);
        }
        total += f64::from(sum);
    }
    total.ln() + f64::from(row_max)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounds to the precision of the buffers"
)]
#[inline(always)]
fn to_f32(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use moa_reference::compare::{Tolerance, compare};
    use moa_reference::cross_entropy as twin;

    use super::*;

    fn logits(rows: usize, vocab: usize, step: f32) -> Vec<f32> {
        (0..rows * vocab)
            .map(|i| (i as f32 * step).sin() * 12.0)
            .collect()
    }

    #[test]
    fn losses_and_gradients_are_the_twins() {
        for (rows, vocab) in [(1, 1), (2, 3), (5, 320), (3, 49_152)] {
            let (student, teacher) = (logits(rows, vocab, 0.7), logits(rows, vocab, 0.71));
            let targets: Vec<u32> = (0..rows)
                .map(|row| u32::try_from(row * 7 % vocab).unwrap())
                .collect();
            let mean = 1.0 / rows as f64;

            let (expected, gradient) = twin::cross_entropy(&student, &targets);
            let mut actual = student.clone();
            let loss = cross_entropy(&mut actual, &targets, mean) * mean;
            assert!((loss - expected).abs() < 1e-6, "{loss} {expected}"); // measured 2e-7
            compare(&actual, &gradient, Tolerance::new(1e-7, 1e-6)).assert("cross entropy");
            actual[0] += 1e-5;
            assert!(!compare(&actual, &gradient, Tolerance::new(1e-7, 1e-6)).passed());

            let (expected, gradient) = twin::kl_divergence(&teacher, &student, rows);
            let mut actual = student.clone();
            let loss = kl_divergence(&teacher, &mut actual, rows, mean) * mean;
            assert!(
                (loss - expected).abs() < 2e-6 * (1.0 + expected),
                "{loss} {expected}"
            );
            compare(&actual, &gradient, Tolerance::new(5e-7, 2e-6)).assert("kl"); // measured 1.8e-7: q - p cancels
        }
    }

    #[test]
    fn equal_distributions_have_no_divergence() {
        let teacher = logits(2, 1000, 0.3);
        let mut student = teacher.clone();
        assert_eq!(kl_divergence(&teacher, &mut student, 2, 0.5), 0.0);
        assert!(student.iter().all(|&value| value == 0.0));
    }

    #[test]
    fn a_token_ruled_out_gives_no_nan() {
        let teacher = [0.0, f32::NEG_INFINITY, 1.0];
        let mut student = [0.0, f32::NEG_INFINITY, 1.0];
        assert_eq!(kl_divergence(&teacher, &mut student, 1, 1.0), 0.0);
    }
}
