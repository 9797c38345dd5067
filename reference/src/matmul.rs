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

/// The same where inputs are rounded to 127th parts of the largest magnitude in their group of 32 columns before they meet
/// the weights less `offsets`; offsets meet them as they are.
pub fn matmul_packed(x: &[f32], weights: &[f64], offsets: &[f64], cols: usize) -> Vec<f64> {
    let rounded: Vec<f64> = x
        .chunks(32)
        .flat_map(|group| {
            let largest = group.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            let step = f64::from(largest) / 127.0;
            let round = move |&value: &f32| {
                if step == 0.0 {
                    0.0
                } else {
                    (f64::from(value) / step).round_ties_even() * step
                }
            };
            group.iter().map(round)
        })
        .collect();
    let (tokens, rows) = (x.len() / cols, weights.len() / cols);
    let mut y = vec![0.0; tokens * rows];
    for token in 0..tokens {
        for row in 0..rows {
            for col in 0..cols {
                let (input, at) = (token * cols + col, row * cols + col);
                y[token * rows + row] += rounded[input] * (weights[at] - offsets[at])
                    + f64::from(x[input]) * offsets[at];
            }
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

    #[test]
    fn packed_by_hand() {
        let mut x = [0.0f32; 32];
        (x[0], x[1]) = (127.0, 0.75);
        // 0.75 becomes 1 where it meets the weight less 2, and stays what it is where it meets 2.
        let y = matmul_packed(&x, &[5.0; 32], &[2.0; 32], 32);
        assert_eq!(y, [128.0 * 3.0 + 127.75 * 2.0]);
    }
}
