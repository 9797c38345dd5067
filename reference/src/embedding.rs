//! Twin of `embedding`: the rows of the tokens.

/// `tokens` into `weights` `[rows, cols]` -> `[tokens, cols]`.
pub fn embedding(tokens: &[u32], weights: &[f64], cols: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(tokens.len() * cols);
    for &token in tokens {
        y.extend_from_slice(&weights[token as usize * cols..][..cols]);
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_copied() {
        assert_eq!(
            embedding(&[2, 0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2),
            [5.0, 6.0, 1.0, 2.0]
        );
    }
}
