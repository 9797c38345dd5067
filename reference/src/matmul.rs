//! Twin of `matmul`: `y = x W^T (+ bias)`, tokens against the rows of a weight matrix.

/// `x` `[tokens, cols]`, `weights` `[rows, cols]` row by row, `bias` `[rows]` or nothing -> `[tokens, rows]`.
pub fn matmul(x: &[f32], weights: &[f64], cols: usize, bias: Option<&[f32]>) -> Vec<f64> {
    let (tokens, rows) = (x.len() / cols, weights.len() / cols);
    let mut y = vec![0.0; tokens * rows];
    for token in 0..tokens {
        for row in 0..rows {
            let mut sum = bias.map_or(0.0, |bias| f64::from(bias[row]));
            for col in 0..cols {
                sum += f64::from(x[token * cols + col]) * weights[row * cols + col];
            }
            y[token * rows + row] = sum;
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let y = matmul(
            &[1.0, 0.0, -1.0, 2.0, 1.0, 0.0],
            &weights,
            3,
            Some(&[0.5, 0.0]),
        );
        assert_eq!(y, [-1.5, -2.0, 4.5, 13.0]);
        assert_eq!(matmul(&[1.0, 1.0, 1.0], &weights, 3, None), [6.0, 15.0]);
    }
}
