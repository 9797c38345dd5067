//! Twin of `gate_up`: `silu(Wg norm(x)) * (Wu norm(x))` of one token.

use crate::project::{Norm, normalized};

/// `x` `[cols]`, `gate` and `up` `[rows, cols]` -> `[rows]`.
pub fn gate_up(x: &[f32], norm: Norm<'_>, gate: &[f64], up: &[f64]) -> Vec<f64> {
    let gate = normalized(x, Some(norm), gate);
    let up = normalized(x, Some(norm), up);
    gate.iter()
        .zip(up)
        .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swiglu::swiglu;

    #[test]
    fn the_gate_is_swiglus() {
        let norm = Norm {
            weight: &[1.0, 1.0],
            eps: 0.0,
        };
        // A row of equal magnitudes becomes its signs.
        let y = gate_up(&[2.0, -2.0], norm, &[1.5, -1.5], &[0.25, 0.0]);
        assert!((y[0] - swiglu(&[3.0], &[0.25])[0]).abs() < 1e-12);
    }
}
