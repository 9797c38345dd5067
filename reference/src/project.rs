//! Twin of `project`: one token, normalized or not, against the rows of a weight matrix, added to what is there.

use crate::matmul::matmul;

/// A norm in the load: its weights and what is added under the root.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[cols]`.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f64,
}

/// `x` `[cols]`, `weights` `[rows, cols]`, `residual` `[rows]` or nothing -> `[rows]`. Nothing is rounded between.
pub fn project(
    x: &[f32],
    norm: Option<Norm<'_>>,
    weights: &[f64],
    residual: Option<&[f32]>,
) -> Vec<f64> {
    let mut y = normalized(x, norm, weights);
    for (y, residual) in y.iter_mut().zip(residual.into_iter().flatten()) {
        *y += f64::from(*residual);
    }
    y
}

/// `W norm(x)`: the norm's weights go into the matrix, the root is divided by at the end, as in the kernels.
pub(crate) fn normalized(x: &[f32], norm: Option<Norm<'_>>, weights: &[f64]) -> Vec<f64> {
    let cols = x.len();
    let Some(Norm { weight, eps }) = norm else {
        return matmul(x, weights, cols, None);
    };
    let mut square_sum = 0.0;
    for value in x {
        square_sum += f64::from(*value) * f64::from(*value);
    }
    let root = (square_sum / cols as f64 + eps).sqrt();
    let scaled: Vec<f64> = (weights.iter().zip(weight.iter().cycle()))
        .map(|(matrix, norm)| matrix * f64::from(*norm) / root)
        .collect();
    matmul(x, &scaled, cols, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rms_norm::rms_norm;

    #[test]
    fn the_norm_is_the_norms() {
        let (x, weight) = ([3.0f32, -1.0, 0.5, 2.0], [1.0f32, 0.5, -2.0, 0.25]);
        let weights = [1.0, 2.0, -1.0, 0.5, 0.0, 1.0, 3.0, -2.0];
        let norm = Norm {
            weight: &weight,
            eps: 0.1,
        };
        let y = project(&x, Some(norm), &weights, Some(&[10.0, -5.0]));
        let normed = rms_norm(&x, &weight, 0.1);
        for row in 0..2 {
            let sum: f64 = (0..4).map(|col| weights[4 * row + col] * normed[col]).sum();
            assert!((y[row] - sum - [10.0, -5.0][row]).abs() < 1e-12);
        }
    }
}
