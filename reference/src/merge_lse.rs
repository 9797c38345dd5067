//! Twin of `merge_lse`: attention over parts of the keys, joined into attention over all of them.

/// One part: the weighted sum of V before division, the largest score, and the sum of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// `sum of exp(score - row_max) * V`.
    pub sum: Vec<f64>,
    /// Largest score of the part.
    pub row_max: f64,
    /// `sum of exp(score - row_max)`; 0 for a part without keys.
    pub row_sum: f64,
}

/// The softmax-weighted mean of V over all parts' keys.
pub fn merge_lse(parts: &[Part]) -> Vec<f64> {
    let row_max = parts
        .iter()
        .map(|part| part.row_max)
        .fold(f64::NEG_INFINITY, f64::max);
    let mut y = vec![0.0; parts[0].sum.len()];
    let mut row_sum = 0.0;
    for part in parts {
        let weight = (part.row_max - row_max).exp();
        row_sum += weight * part.row_sum;
        for channel in 0..y.len() {
            y[channel] += weight * part.sum[channel];
        }
    }
    for value in &mut y {
        *value /= row_sum;
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_give_what_the_whole_gives() {
        let (scores, values) = ([0.5f64, 80.0, -80.0, 79.0, 3.0], [1.0, -2.0, 5.0, 4.0, 7.0]);
        let part = |keys: std::ops::Range<usize>| {
            let row_max = scores[keys.clone()].iter().copied().fold(-3e38, f64::max);
            let weights: Vec<f64> = scores[keys.clone()]
                .iter()
                .map(|score| (score - row_max).exp())
                .collect();
            let sum = weights
                .iter()
                .zip(&values[keys])
                .map(|(weight, value)| weight * value)
                .sum();
            Part {
                sum: vec![sum],
                row_max,
                row_sum: weights.iter().sum(),
            }
        };
        let whole = merge_lse(&[part(0..5)]);
        for split in [
            [part(0..2), part(2..5), part(5..5)],
            [part(0..0), part(0..4), part(4..5)],
        ] {
            assert!((merge_lse(&split)[0] - whole[0]).abs() < 1e-12);
        }
    }
}
