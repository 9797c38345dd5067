//! Twin of `rope`: rotates channel i of a head with channel i + `head_dim/2` (`rotate_half`) by an angle that
//! grows with the position.
//!
//! Frequencies come from `moa-format`; here they are an argument, in f64. Cosines and sines are not rounded to
//! f32, as kernels' tables are, so that the twin also shows what the tables cost.

/// Rotates `x` `[positions, heads, head_dim]` by the angle `position * inv_freq[pair]`.
///
/// `inv_freq` has `head_dim/2` entries. `backward` turns the other way: the transposed rotation.
pub fn rope(
    x: &[f32],
    positions: &[u32],
    heads: usize,
    inv_freq: &[f64],
    backward: bool,
) -> Vec<f64> {
    let half = inv_freq.len();
    let head_dim = 2 * half;
    let mut y = vec![0.0; x.len()];
    for (t, position) in positions.iter().enumerate() {
        for head in 0..heads {
            let base = (t * heads + head) * head_dim;
            for pair in 0..half {
                let angle = f64::from(*position) * inv_freq[pair];
                let (mut sin, cos) = angle.sin_cos();
                if backward {
                    sin = -sin;
                }
                let (low, high) = (f64::from(x[base + pair]), f64::from(x[base + half + pair]));
                y[base + pair] = low * cos - high * sin;
                y[base + half + pair] = high * cos + low * sin;
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_pairs_half_a_head_apart() {
        let quarter = std::f64::consts::FRAC_PI_2;
        let y = rope(&[1.0, 2.0, 3.0, 4.0], &[1], 1, &[quarter, 0.0], false);
        let expected = [-3.0, 2.0, 1.0, 4.0];
        for (y, expected) in y.iter().zip(expected) {
            assert!((y - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn backward_undoes_forward() {
        let x: Vec<f32> = (0..2 * 3 * 4).map(|i| (i as f32 * 0.7).sin()).collect();
        let y = rope(&x, &[5, 1000], 3, &[1.0, 0.01], false);
        let y: Vec<f32> = y.iter().map(|value| *value as f32).collect();
        for (back, x) in rope(&y, &[5, 1000], 3, &[1.0, 0.01], true).iter().zip(&x) {
            assert!((back - f64::from(*x)).abs() < 1e-6);
        }
    }
}
