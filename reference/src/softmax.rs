//! Twin of `softmax`: stable softmax and log-sum-exp of rows.

/// Softmax of one row, and its log-sum-exp. An empty row gives an empty row and negative infinity.
pub fn softmax(row: &[f64]) -> (Vec<f64>, f64) {
    let row_max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if row_max == f64::NEG_INFINITY {
        return (vec![0.0; row.len()], f64::NEG_INFINITY);
    }
    let mut row_sum = 0.0;
    for value in row {
        row_sum += (value - row_max).exp();
    }
    let probabilities = row
        .iter()
        .map(|value| (value - row_max).exp() / row_sum)
        .collect();
    (probabilities, row_max + row_sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let (p, lse) = softmax(&[0.0, 3.0f64.ln()]);
        assert!((p[0] - 0.25).abs() < 1e-15 && (p[1] - 0.75).abs() < 1e-15);
        assert!((lse - 4.0f64.ln()).abs() < 1e-15);
        let (p, lse) = softmax(&[80.0, -80.0, 1e4]);
        assert!(p[2] == 1.0 && lse == 1e4);
        assert_eq!(softmax(&[]).1, f64::NEG_INFINITY);
    }
}
