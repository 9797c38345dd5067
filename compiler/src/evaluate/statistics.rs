//! Intervals and tests for trials that every method took on the same prompts.
//!
//! Exact where that is cheap (`McNemar`), by resampling where no formula holds (ratios, perplexities). The seed is fixed, so
//! that the same results give the same intervals. Nothing here knows what was measured.

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::calibrate::seeded;

/// Two-sided 95% of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;
/// Resamples of a bootstrap: enough for two digits of a 95% interval.
pub(crate) const RESAMPLES: usize = 2000;

/// A 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Wilson's score interval of a share: `right` of `trials`. All of [0, 1] without trials.
pub(crate) fn wilson(right: usize, trials: usize) -> Interval {
    if trials == 0 {
        return Interval {
            low: 0.0,
            high: 1.0,
        };
    }
    let n = trials as f64;
    let share = right as f64 / n;
    let denominator = 1.0 + Z * Z / n;
    let center = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Interval {
        low: ((center - half) / denominator).max(0.0),
        high: ((center + half) / denominator).min(1.0),
    }
}

/// The two-sided p-value of `McNemar`'s exact test: how surprising it is, were both methods equally good, that
/// `only_first` trials went to the first alone and `only_second` to the second alone.
pub(crate) fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let n = only_first + only_second;
    let fewer = only_first.min(only_second);
    // In logarithms: 2^-n leaves f64 beyond a thousand trials.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=fewer {
        if k > 0 {
            ln_term += ((n - k + 1) as f64).ln() - (k as f64).ln();
        }
        sum += ln_term.exp();
    }
    (2.0 * sum).min(1.0)
}

/// The percentile interval of `statistic` over resamples of `count` trials, drawn with replacement. Resamples for
/// which the statistic is not finite (a ratio over nothing) are left out; without any, no interval.
pub(crate) fn bootstrap(
    count: usize,
    seed: u64,
    statistic: impl Fn(&[usize]) -> f64,
) -> Option<Interval> {
    if count == 0 {
        return None;
    }
    let mut rng = seeded("moa bootstrap 1", "trials", 0, seed, count);
    let mut drawn = vec![0; count];
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for index in &mut drawn {
                *index = rng.random_range(0..count);
            }
            statistic(&drawn)
        })
        .filter(|value| value.is_finite())
        .collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "an index of the list")]
        let index = (share * last as f64).round() as usize;
        values[index]
    };
    Some(Interval {
        low: at(0.025),
        high: at(0.975),
    })
}

/// Mean of the values at `indices`.
pub(crate) fn mean_at(values: &[f64], indices: &[usize]) -> f64 {
    indices.iter().map(|&index| values[index]).sum::<f64>() / indices.len() as f64
}

/// Mean; NaN of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Spearman's rank correlation; NaN where one side is constant.
pub(crate) fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let (x, y) = (ranks(x), ranks(y));
    let (mean_x, mean_y) = (mean(&x), mean(&y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(&y) {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xy += dx * dy;
        xx += dx * dx;
        yy += dy * dy;
    }
    xy / (xx * yy).sqrt()
}

/// Kendall's tau-b; NaN where one side is constant.
pub(crate) fn kendall(x: &[f64], y: &[f64]) -> f64 {
    let (mut agree, mut tied_x, mut tied_y, mut pairs) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..x.len().min(y.len()) {
        for j in 0..i {
            let (a, b) = (x[i].total_cmp(&x[j]) as i8, y[i].total_cmp(&y[j]) as i8);
            agree += f64::from(a * b);
            tied_x += f64::from(a == 0);
            tied_y += f64::from(b == 0);
            pairs += 1.0;
        }
    }
    agree / ((pairs - tied_x) * (pairs - tied_y)).sqrt()
}

/// Ranks from 0; equal values share their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    while first < order.len() {
        let mut last = first;
        while last + 1 < order.len() && values[order[last + 1]] == values[order[first]] {
            last += 1;
        }
        for &index in &order[first..=last] {
            ranks[index] = (first + last) as f64 / 2.0;
        }
        first = last + 1;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-4, "{a} is not {b}");
    }

    #[test]
    fn wilson_matches_published_values() {
        // Newcombe 1998, table I: 81 of 263 and 0 of 20.
        let interval = wilson(81, 263);
        close(interval.low, 0.2553);
        close(interval.high, 0.3662);
        let interval = wilson(0, 20);
        close(interval.low, 0.0);
        close(interval.high, 0.1611);
        let interval = wilson(20, 20);
        close(interval.low, 1.0 - 0.1611);
        assert_eq!(
            wilson(0, 0),
            Interval {
                low: 0.0,
                high: 1.0
            }
        );
    }

    #[test]
    fn mcnemar_is_the_binomial_test_of_the_disagreements() {
        close(mcnemar(0, 0), 1.0);
        close(mcnemar(5, 5), 1.0);
        close(mcnemar(0, 5), 2.0 / 32.0);
        close(mcnemar(1, 7), 2.0 * 9.0 / 256.0);
        assert_eq!(mcnemar(1, 7), mcnemar(7, 1));
        let p = mcnemar(900, 1100);
        assert!(p > 1e-6 && p < 1e-4, "{p}");
    }

    #[test]
    fn bootstrap_finds_the_mean_and_repeats_itself() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 2)).collect();
        let run = || bootstrap(values.len(), 3, |at| mean_at(&values, at));
        let interval = run().unwrap();
        assert!(interval.low > 0.40 && interval.low < 0.46, "{interval:?}");
        assert!(interval.high > 0.54 && interval.high < 0.60, "{interval:?}");
        assert_eq!(run(), Some(interval));
        assert_eq!(bootstrap(0, 0, |_| 0.0), None);
        assert_eq!(bootstrap(4, 0, |_| f64::NAN), None);
    }

    #[test]
    fn rank_correlations_know_order_ties_and_nothing_else() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        close(spearman(&x, &[1.0, 10.0, 100.0, 1e3, 1e4]), 1.0);
        close(kendall(&x, &[5.0, 4.0, 3.0, 2.0, 1.0]), -1.0);
        // scipy.stats.spearmanr([1,2,3,4,5],[5,6,7,8,7]) and kendalltau of the same.
        close(spearman(&x, &[5.0, 6.0, 7.0, 8.0, 7.0]), 0.8208);
        close(kendall(&x, &[5.0, 6.0, 7.0, 8.0, 7.0]), 0.7379);
        assert!(spearman(&x, &[1.0; 5]).is_nan());
    }
}
