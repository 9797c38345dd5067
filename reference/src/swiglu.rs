//! Twin of `swiglu`: `silu(gate) * up`, element by element, and its backward.

/// `gate` and `up` of equal length.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f64> {
    let mut y = Vec::with_capacity(gate.len());
    for (gate, up) in gate.iter().zip(up) {
        let gate = f64::from(*gate);
        y.push(gate * sigmoid(gate) * f64::from(*up));
    }
    y
}

/// dL/dgate and dL/dup from dL/dy.
pub fn swiglu_backward(gate: &[f32], up: &[f32], d_y: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let mut d_gate = Vec::with_capacity(gate.len());
    let mut d_up = Vec::with_capacity(gate.len());
    for i in 0..gate.len() {
        let (gate, up, d_y) = (f64::from(gate[i]), f64::from(up[i]), f64::from(d_y[i]));
        let sigma = sigmoid(gate);
        d_gate.push(d_y * up * sigma * (1.0 + gate * (1.0 - sigma)));
        d_up.push(d_y * gate * sigma);
    }
    (d_gate, d_up)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let y = swiglu(&[0.0, 1.0, -1000.0, 1000.0], &[5.0, 2.0, 3.0, 0.5]);
        let expected = [0.0, 2.0 / (1.0 + (-1.0f64).exp()), 0.0, 500.0];
        for (y, expected) in y.iter().zip(expected) {
            assert!((y - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        let (gate, up, d_y) = (
            [0.5f32, -2.0, 3.0],
            [1.5f32, -0.5, 2.0],
            [1.0f32, 2.0, -1.0],
        );
        let (d_gate, d_up) = swiglu_backward(&gate, &up, &d_y);
        let step = 1.0f32 / 1024.0;
        for i in 0..3 {
            let slope = |gate_step: f32, up_step: f32| {
                let at =
                    |sign: f32| swiglu(&[gate[i] + sign * gate_step], &[up[i] + sign * up_step])[0];
                (at(1.0) - at(-1.0)) / (2.0 * f64::from(step)) * f64::from(d_y[i])
            };
            assert!((slope(step, 0.0) - d_gate[i]).abs() < 1e-5);
            assert!((slope(0.0, step) - d_up[i]).abs() < 1e-5);
        }
    }
}
