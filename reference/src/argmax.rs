//! Twin of `argmax`: the smallest index among the largest values; NaN is never chosen, 0 where all are NaN.

/// The greedy token.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best: Option<usize> = None;
    for i in 0..logits.len() {
        if !logits[i].is_nan() && best.is_none_or(|best| logits[i] > logits[best]) {
            best = Some(i);
        }
    }
    best.unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_first_and_nan_to_nobody() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -1e30, f32::NAN]), 1);
        assert_eq!(argmax(&[f32::NAN]), 0);
    }
}
