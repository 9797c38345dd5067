//! Twin of `sample`: penalties, temperature, top-k, top-p, min-p and one draw, on whole-number weights.
//!
//! A logit's weight is `exp((logit - largest) / temperature)` in parts of [`WEIGHT_ONE`], rounded, and everything
//! after that is exact. Equal logits stay together: top-k may keep more than k, top-p more than it needs.

use moa_mask::abi::WEIGHT_ONE;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Divides the logits; 0 chooses the largest.
    pub temperature: f64,
    /// Keeps the k largest; 0 keeps all.
    pub top_k: u32,
    /// Keeps the largest until they hold so many parts of 2^32 of the mass; `u32::MAX` keeps all.
    pub top_p: u32,
    /// Smallest weight that is kept.
    pub min_weight: u32,
    /// Seed of the draws.
    pub seed: u64,
    /// Divides positive logits of tokens in the text, multiplies negative ones.
    pub repetition: f64,
    /// Taken off the logits of generated tokens.
    pub presence: f64,
    /// Taken off for each time that they were generated.
    pub frequency: f64,
}

/// A token in the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// It is in the prompt.
    pub in_prompt: bool,
    /// How often it was generated.
    pub generated: u32,
}

/// The chosen token, and how clear the choice was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// The token.
    pub id: u32,
    /// How far the draw lay from the nearest neighbor's share, as a part of all mass; 1 where nothing was drawn.
    pub margin: f64,
}

/// First word of Philox4x32-10 at the counter `(counter, 0, 0, 0)` under the key `seed`.
pub fn philox(counter: u32, seed: u64) -> u32 {
    let mut c = [counter, 0, 0, 0];
    let (mut k0, mut k1) = (seed as u32, (seed >> 32) as u32);
    for _ in 0..10 {
        let a = 0xd251_1f53u64 * u64::from(c[0]);
        let b = 0xcd9e_8d57u64 * u64::from(c[2]);
        c = [
            (b >> 32) as u32 ^ c[1] ^ k0,
            b as u32,
            (a >> 32) as u32 ^ c[3] ^ k1,
            a as u32,
        ];
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    c[0]
}

/// The logits after penalties; `None` where one is no finite number.
pub fn penalized(logits: &[f32], seen: &[Seen], choice: Choice) -> Vec<Option<f64>> {
    let mut list = Vec::with_capacity(logits.len());
    for i in 0..logits.len() {
        let seen = seen.get(i).copied().unwrap_or_default();
        let mut value = f64::from(logits[i]);
        if !value.is_finite() {
            list.push(None);
            continue;
        }
        if seen != Seen::default() {
            value = if value > 0.0 {
                value / choice.repetition
            } else {
                value * choice.repetition
            };
            value -= choice.frequency * f64::from(seen.generated);
            if seen.generated > 0 {
                value -= choice.presence;
            }
        }
        list.push(Some(value));
    }
    list
}

/// The kept ids with their weights, in the order in which the draw goes through them.
pub fn kept(values: &[Option<f64>], choice: Choice) -> Vec<(u32, u32)> {
    let largest = values.iter().flatten().copied().fold(f64::MIN, f64::max);
    let mut sorted: Vec<(f64, u32, u32)> = Vec::new();
    for i in 0..values.len() {
        if let Some(value) = values[i] {
            let weight = ((value - largest) / choice.temperature).exp() * f64::from(WEIGHT_ONE);
            sorted.push((value, i as u32, (weight + 0.5) as u32));
        }
    }
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    // The values of the entry at which enough is reached, and of all its equals.
    let cut = |sorted: &mut Vec<(f64, u32, u32)>, enough: usize| {
        if let Some(&(value, ..)) = sorted.get(enough) {
            sorted.retain(|entry| entry.0 >= value);
        }
    };
    if choice.top_k > 0 {
        cut(&mut sorted, choice.top_k as usize - 1);
    }
    if choice.top_p < u32::MAX {
        let total: u64 = sorted.iter().map(|entry| u64::from(entry.2)).sum();
        let needed = part_of(total, choice.top_p).max(1);
        let mut reached = 0;
        let last = sorted.iter().position(|entry| {
            reached += u64::from(entry.2);
            reached >= needed
        });
        cut(&mut sorted, last.unwrap_or(usize::MAX));
    }
    let mut kept: Vec<(u32, u32)> = sorted
        .into_iter()
        .filter(|entry| entry.2 >= choice.min_weight)
        .map(|(_, id, weight)| (id, weight))
        .collect();
    kept.sort_by_key(|(id, _)| (id / 4 % 256, *id));
    kept
}

/// The token after `logits` at `position`; `seen` may be shorter than the vocabulary.
pub fn sample(logits: &[f32], seen: &[Seen], choice: Choice, position: u32) -> Chosen {
    let values = penalized(logits, seen, choice);
    if choice.temperature == 0.0 {
        let mut best: Option<(f64, usize)> = None;
        for i in 0..values.len() {
            if let Some(value) = values[i]
                && best.is_none_or(|(largest, _)| value > largest)
            {
                best = Some((value, i));
            }
        }
        let id = best.map_or(0, |(_, id)| id as u32);
        return Chosen { id, margin: 1.0 };
    }
    let kept = kept(&values, choice);
    let total: u64 = kept.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut left = part_of(total, philox(position, choice.seed));
    for &(id, weight) in &kept {
        let weight = u64::from(weight);
        if left < weight {
            let margin = left.min(weight - left) as f64 / total as f64;
            return Chosen { id, margin };
        }
        left -= weight;
    }
    Chosen { id: 0, margin: 0.0 }
}

fn part_of(mass: u64, part: u32) -> u64 {
    ((u128::from(mass) * u128::from(part)) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Choice = Choice {
        temperature: 1.0,
        top_k: 0,
        top_p: u32::MAX,
        min_weight: 0,
        seed: 7,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
    };

    fn counts(logits: &[f32], choice: Choice, draws: u32) -> Vec<u32> {
        let mut counts = vec![0; logits.len()];
        for position in 0..draws {
            counts[sample(logits, &[], choice, position).id as usize] += 1;
        }
        counts
    }

    #[test]
    fn philox_gives_its_authors_numbers() {
        assert_eq!(philox(0, 0), 0x6627_e8d5);
        assert_ne!(philox(1, 0), philox(0, 0));
        assert_ne!(philox(0, 1 << 32), philox(0, 0));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let choice = Choice {
            temperature: 0.5,
            ..PLAIN
        };
        let weights = logits.map(|logit| (f64::from(logit) * 2.0).exp());
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts(&logits, choice, 20_000).iter().zip(weights) {
            let part = f64::from(*count) / 20_000.0;
            assert!((part - weight / total).abs() < 0.01, "{part}");
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        // Probabilities at temperature 1: .03, .09, .24, .64.
        let values = [0.0, 1.0, 2.0, 3.0].map(Some);
        let ids =
            |choice| -> Vec<u32> { kept(&values, choice).iter().map(|(id, _)| *id).collect() };
        assert_eq!(ids(PLAIN), [0, 1, 2, 3]);
        assert_eq!(ids(Choice { top_k: 2, ..PLAIN }), [2, 3]);
        let top_p = |p: f64| Choice {
            top_p: (p * 2f64.powi(32)) as u32,
            ..PLAIN
        };
        assert_eq!(ids(top_p(0.6)), [3]);
        assert_eq!(ids(top_p(0.7)), [2, 3]);
        assert_eq!(ids(top_p(0.0)), [3]);
        let min_weight = (0.3 * f64::from(WEIGHT_ONE)) as u32;
        assert_eq!(
            ids(Choice {
                min_weight,
                ..PLAIN
            }),
            [2, 3]
        );
        let ties = [1.0, 1.0, 1.0, 0.0].map(Some);
        assert_eq!(kept(&ties, Choice { top_k: 1, ..PLAIN }).len(), 3);
    }

    #[test]
    fn penalties_move_what_was_seen() {
        let seen = [
            Seen::default(),
            Seen {
                in_prompt: true,
                generated: 0,
            },
            Seen {
                in_prompt: false,
                generated: 3,
            },
        ];
        let choice = Choice {
            repetition: 2.0,
            presence: 0.5,
            frequency: 0.25,
            ..PLAIN
        };
        let values = penalized(&[4.0, 4.0, -4.0], &seen, choice);
        assert_eq!(values, [Some(4.0), Some(2.0), Some(-9.25)]);
        let greedy = Choice {
            temperature: 0.0,
            ..choice
        };
        assert_eq!(sample(&[3.0, 4.0, f32::NAN], &seen, greedy, 0).id, 0);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits = [0.0f32; 64];
        let draw = |seed| -> Vec<u32> {
            (0..16)
                .map(|position| sample(&logits, &[], Choice { seed, ..PLAIN }, position).id)
                .collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(0)[..8], draw(0)[8..]);
    }
}
