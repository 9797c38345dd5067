//! Twin of `rms_norm`: `y = x / sqrt(mean(x^2) + eps) * weight`, row by row, and its backward.
//!
//! The weight has no gradient here: nothing in this project trains.

/// `x` `[rows, dim]`, `weight` `[dim]` -> `[rows, dim]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let dim = weight.len();
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(dim) {
        let scale = inverse_rms(row, eps);
        for (value, weight) in row.iter().zip(weight) {
            y.push(f64::from(*value) * scale * f64::from(*weight));
        }
    }
    y
}

/// dL/dx from dL/dy, both `[rows, dim]`.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], d_y: &[f32], eps: f64) -> Vec<f64> {
    let dim = weight.len();
    let mut d_x = Vec::with_capacity(x.len());
    for (row, d_row) in x.chunks_exact(dim).zip(d_y.chunks_exact(dim)) {
        let scale = inverse_rms(row, eps);
        let mut projection = 0.0;
        for i in 0..dim {
            projection += f64::from(d_row[i]) * f64::from(weight[i]) * f64::from(row[i]);
        }
        projection *= scale * scale / dim as f64;
        for i in 0..dim {
            let direct = f64::from(d_row[i]) * f64::from(weight[i]);
            d_x.push(scale * (direct - f64::from(row[i]) * projection));
        }
    }
    d_x
}

fn inverse_rms(row: &[f32], eps: f64) -> f64 {
    let mut square_sum = 0.0;
    for value in row {
        square_sum += f64::from(*value) * f64::from(*value);
    }
    1.0 / (square_sum / row.len() as f64 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_equal_magnitudes_becomes_signs_times_weight() {
        let y = rms_norm(&[3.0, -3.0, 3.0, -3.0], &[1.0, 2.0, 3.0, 4.0], 0.0);
        assert_eq!(y, [1.0, -2.0, 3.0, -4.0]);
        assert!(
            rms_norm(&[0.0; 4], &[1.0; 4], 1e-5)
                .iter()
                .all(|value| *value == 0.0)
        );
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        let (x, weight) = ([0.5f32, -1.25, 2.0], [0.75f32, 1.5, -0.5]);
        let d_y = [1.0f32, -0.5, 0.25];
        let loss = |x: &[f32]| -> f64 {
            let y = rms_norm(x, &weight, 1e-5);
            y.iter().zip(&d_y).map(|(y, d)| y * f64::from(*d)).sum()
        };
        let d_x = rms_norm_backward(&x, &weight, &d_y, 1e-5);
        for i in 0..3 {
            let step = 1.0 / 1024.0;
            let (mut above, mut below) = (x, x);
            above[i] += step;
            below[i] -= step;
            let slope = (loss(&above) - loss(&below)) / (2.0 * f64::from(step));
            assert!((slope - d_x[i]).abs() < 1e-5, "{slope} {}", d_x[i]);
        }
    }
}
