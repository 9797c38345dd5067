//! The two densities. Always say which one is meant, and at which length.

use crate::HeadMask;

/// The memory claim: mean over KV heads of `min(S(N), N) / N`. Slack and scratch are not in it; bytes are in
/// [`crate::memory`]. NaN without heads or at length 0.
pub fn kv_density(masks: impl IntoIterator<Item = HeadMask>, context: u32) -> f64 {
    mean(masks, |mask| {
        f64::from(mask.span().min(context)) / f64::from(context)
    })
}

/// The compute claim: visible query-key pairs over causal pairs of a text of `context` tokens, mean over KV
/// heads. NaN without heads or at length 0.
pub fn attention_density(masks: impl IntoIterator<Item = HeadMask>, context: u32) -> f64 {
    let causal = pairs(HeadMask::DENSE, context);
    #[expect(
        clippy::cast_precision_loss,
        reason = "a ratio of counts, good to 53 bits"
    )]
    let ratio = |mask| pairs(mask, context) as f64 / causal as f64;
    mean(masks, ratio)
}

/// Visible query-key pairs of a text of `context` tokens under one mask.
pub fn pairs(mask: HeadMask, context: u32) -> u64 {
    let full = u64::from(mask.span().min(context));
    full * (full + 1) / 2 + (u64::from(context) - full) * full
}

fn mean(masks: impl IntoIterator<Item = HeadMask>, value: impl Fn(HeadMask) -> f64) -> f64 {
    let (sum, count) = masks.into_iter().fold((0.0, 0.0), |(sum, count), mask| {
        (sum + value(mask), count + 1.0)
    });
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_count_what_the_predicate_shows() {
        for context in 1..40 {
            for sink in [0, 2, 4] {
                for window in 1..45 {
                    let mask = HeadMask { sink, window };
                    let mut visible = 0;
                    for q_pos in 0..context {
                        visible += (0..context)
                            .filter(|&k_pos| mask.attends(q_pos, k_pos))
                            .count() as u64;
                    }
                    assert_eq!(visible, pairs(mask, context));
                    let causal = f64::from(context * (context + 1) / 2);
                    assert!(
                        (attention_density([mask], context) - visible as f64 / causal).abs()
                            < 1e-12
                    );
                    let last = (0..context)
                        .filter(|&k_pos| mask.attends(context - 1, k_pos))
                        .count();
                    assert!(
                        (kv_density([mask], context) - last as f64 / f64::from(context)).abs()
                            < 1e-12
                    );
                }
            }
        }
        assert!(kv_density([], 8).is_nan());
        assert!(
            (kv_density([HeadMask::DENSE, HeadMask { sink: 0, window: 4 }], 8) - 0.75).abs()
                < 1e-12
        );
    }
}
