//! The rules on offer.

use std::collections::BTreeMap;

use moa_mask::{HeadRule, MaskGrid};

const ALPHA_STEP: i64 = 256;
const LEAST_ALPHA: i64 = -2048;
const BETA_STEPS: u32 = 8;

/// Every rule with alpha a multiple of 256 from -2048 to the longest profiled length and beta in eighths, one for each
/// distinct tuple of spans at the `profiled` and `constrained` lengths, in the order of these spans.
///
/// Of rules that cannot be told apart the one with the smallest |alpha|, then the smallest beta, is kept: beyond the
/// longest length it grows the least surprisingly. [`HeadRule::DENSE`] always stands for the rules that see everything.
pub fn candidates(profiled: &[u32], constrained: &[u32], grid: MaskGrid) -> Vec<HeadRule> {
    let mut lengths: Vec<u32> = profiled.iter().chain(constrained).copied().collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
    let longest = i64::from(profiled.iter().copied().max().unwrap_or(0));
    let spans = |rule: HeadRule| -> Vec<u32> {
        lengths
            .iter()
            .map(|&length| rule.span(length, grid))
            .collect()
    };

    let mut by_spans = BTreeMap::new();
    by_spans.insert(spans(HeadRule::DENSE), HeadRule::DENSE);
    let mut alphas: Vec<i64> = (LEAST_ALPHA / ALPHA_STEP..=longest / ALPHA_STEP)
        .map(|step| step * ALPHA_STEP)
        .collect();
    alphas.sort_by_key(|alpha| (alpha.abs(), *alpha));
    for alpha in alphas {
        for eighths in 0..=BETA_STEPS {
            #[expect(clippy::cast_precision_loss, reason = "within +-2^32")]
            let rule = HeadRule::Elastic {
                alpha: alpha as f64,
                beta: f64::from(eighths) / f64::from(BETA_STEPS),
            };
            by_spans.entry(spans(rule)).or_insert(rule);
        }
    }
    by_spans.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rules_are_distinct_by_their_spans_and_nothing_is_lost() {
        let grid = MaskGrid::default();
        let (profiled, constrained) = ([2048, 4096, 8192], [1024, 2048, 4096, 8192, 16384]);
        let rules = candidates(&profiled, &constrained, grid);
        let spans = |rule: HeadRule| constrained.map(|length| rule.span(length, grid));
        let distinct: BTreeSet<_> = rules.iter().map(|&rule| spans(rule)).collect();
        assert_eq!(distinct.len(), rules.len(), "no two rules alike");
        for step in -8..=32 {
            for eighths in 0..=8 {
                let rule = HeadRule::Elastic {
                    alpha: f64::from(step * 256),
                    beta: f64::from(eighths) / 8.0,
                };
                assert!(distinct.contains(&spans(rule)), "{rule:?} is represented");
            }
        }
        assert!(rules.contains(&HeadRule::DENSE));
        assert!(rules.iter().all(|rule| rule.check(grid).is_ok()));
        assert!(
            rules.iter().any(|rule| spans(*rule) == [128; 5]),
            "the smallest spans are on offer"
        );
    }

    #[test]
    fn the_simplest_of_equal_rules_is_kept() {
        let grid = MaskGrid::default();
        let rules = candidates(&[2048], &[2048], grid);
        assert_eq!(
            rules.first(),
            Some(&HeadRule::Elastic {
                alpha: 0.0,
                beta: 0.0
            })
        );
        assert_eq!(rules.last(), Some(&HeadRule::DENSE));
        assert_eq!(rules.len(), 9, "spans 128, 256, 512, ..., 2048");
    }

    #[test]
    fn short_lengths_and_empty_lists_still_offer_dense() {
        let grid = MaskGrid::new(4, 4).unwrap();
        assert_eq!(candidates(&[], &[], grid), [HeadRule::DENSE]);
        assert_eq!(candidates(&[4], &[4], grid), [HeadRule::DENSE]);
        let rules = candidates(&[32], &[32], grid);
        assert_eq!(rules.len(), 7, "spans 8, 12, ..., 32 from beta alone");
        assert!(rules.contains(&HeadRule::DENSE));
    }
}
