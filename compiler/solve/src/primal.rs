//! Plans from prices: repair what exceeds a capacity, spend what is left, exchange pairs.

use crate::choice::{Choice, share};
use crate::stopwatch::Stopwatch;

/// Moves that the exchange looks at, the least penalized ones under the prices.
const MAX_MOVES: usize = 3000;
const MAX_SWEEPS: usize = 60;

/// A selection that is being improved, with what it uses of every row.
#[derive(Debug, Clone)]
pub(crate) struct Draft<'a> {
    choice: &'a Choice,
    pub(crate) pick: Vec<usize>,
    used: Vec<u64>,
}

/// Give `group` the entry `to` instead of its present one.
#[derive(Debug, Clone, Copy)]
struct Move {
    group: usize,
    to: usize,
    cost: f64,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(choice: &'a Choice, pick: Vec<usize>) -> Self {
        let used = choice.used(&pick);
        Self { choice, pick, used }
    }

    pub(crate) fn fits(&self) -> bool {
        self.choice.fits(&self.used)
    }

    pub(crate) fn cost(&self) -> f64 {
        self.choice.cost(&self.pick)
    }

    fn weights(&self, group: usize, entry: usize) -> &'a [u64] {
        self.choice.weight(self.choice.groups[group][entry].key)
    }

    /// What is used after each of `moves` (of different groups), row by row.
    fn used_after(&self, row: usize, moves: &[Move]) -> u64 {
        let mut used = self.used[row];
        for step in moves {
            used += self.weights(step.group, step.to)[row];
            used -= self.weights(step.group, self.pick[step.group])[row];
        }
        used
    }

    fn fits_after(&self, moves: &[Move]) -> bool {
        (0..self.used.len()).all(|row| self.used_after(row, moves) <= self.choice.caps[row])
    }

    fn apply(&mut self, step: Move) {
        for row in 0..self.used.len() {
            self.used[row] = self.used_after(row, &[step]);
        }
        self.pick[step.group] = step.to;
    }

    /// Every move away from the present selection.
    fn moves(&self) -> impl Iterator<Item = Move> + '_ {
        self.choice
            .groups
            .iter()
            .enumerate()
            .flat_map(move |(group, entries)| {
                let now = self.pick[group];
                entries
                    .iter()
                    .enumerate()
                    .filter(move |(to, _)| *to != now)
                    .map(move |(to, entry)| Move {
                        group,
                        to,
                        cost: entry.cost - entries[now].cost,
                    })
            })
    }

    /// Moves into the capacities, by the least priced cost per unit of excess removed. False where no single move
    /// lowers the excess any more.
    pub(crate) fn repair(&mut self, surcharges: &[f64]) -> bool {
        let excess = |used: u64, cap: u64| share(used.saturating_sub(cap), cap);
        while !self.fits() {
            let before: f64 = self
                .used
                .iter()
                .zip(&self.choice.caps)
                .map(|(&used, &cap)| excess(used, cap))
                .sum();
            let mut best: Option<(f64, Move)> = None;
            for step in self.moves() {
                let after: f64 = (0..self.used.len())
                    .map(|row| excess(self.used_after(row, &[step]), self.choice.caps[row]))
                    .sum();
                let removed = before - after;
                if removed <= 0.0 {
                    continue;
                }
                let entries = &self.choice.groups[step.group];
                let surcharge = |entry: usize| surcharges[entries[entry].key as usize];
                let priced = step.cost + surcharge(step.to) - surcharge(self.pick[step.group]);
                // A move that removes more than is needed is not better for it.
                let score = priced.max(0.0) / removed;
                if best.is_none_or(|(least, _)| score < least) {
                    best = Some((score, step));
                }
            }
            let Some((_, step)) = best else { return false };
            self.apply(step);
        }
        true
    }

    /// Takes the cheapening moves that fit, the greatest first.
    pub(crate) fn fill(&mut self) {
        loop {
            let best = self
                .moves()
                .filter(|step| step.cost < 0.0 && self.fits_after(&[*step]))
                .min_by(|a, b| a.cost.total_cmp(&b.cost));
            let Some(step) = best else { return };
            self.apply(step);
        }
    }

    /// Pays for cheapening moves that do not fit with dearer moves elsewhere, while that lowers the cost.
    pub(crate) fn exchange(&mut self, surcharges: &[f64], watch: &Stopwatch) {
        for _ in 0..MAX_SWEEPS {
            if !self.sweep(surcharges, watch) {
                return;
            }
            self.fill();
        }
    }

    fn sweep(&mut self, surcharges: &[f64], watch: &Stopwatch) -> bool {
        let mut moves: Vec<(f64, Move)> = self
            .moves()
            .map(|step| {
                let entries = &self.choice.groups[step.group];
                let surcharge = |entry: usize| surcharges[entries[entry].key as usize];
                (
                    step.cost + surcharge(step.to) - surcharge(self.pick[step.group]),
                    step,
                )
            })
            .collect();
        moves.sort_by(|a, b| a.0.total_cmp(&b.0));
        moves.truncate(MAX_MOVES);
        let mut moves: Vec<Move> = moves.into_iter().map(|(_, step)| step).collect();
        moves.sort_by(|a, b| a.cost.total_cmp(&b.cost));

        // Rounding must not look like progress.
        let least_gain = self.choice.range() * 1e-13;
        let mut touched = vec![false; self.choice.groups.len()];
        let mut improved = false;
        for at in 0..moves.len() {
            let down = moves[at];
            if down.cost >= 0.0 || watch.past(0.9) {
                break;
            }
            if touched[down.group] {
                continue;
            }
            // Partners in order of rising cost: the first that fits is the best.
            let partner = moves
                .iter()
                .take_while(|up| down.cost + up.cost < -least_gain)
                .find(|up| {
                    up.group != down.group && !touched[up.group] && self.fits_after(&[down, **up])
                });
            if let Some(&up) = partner {
                self.apply(down);
                self.apply(up);
                touched[down.group] = true;
                touched[up.group] = true;
                improved = true;
            }
        }
        improved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Entry;

    #[test]
    fn repair_fill_and_exchange_reach_the_optimum_of_a_small_case() {
        let entry = |key, cost| Entry { key, cost };
        let weights = vec![1, 2, 4, 7];
        let groups = vec![
            vec![entry(0, 9.0), entry(1, 6.0), entry(2, 1.0), entry(3, 0.0)],
            vec![entry(0, 4.0), entry(1, 3.0), entry(2, 2.5), entry(3, 0.0)],
            vec![entry(0, 8.0), entry(1, 5.0), entry(2, 4.0), entry(3, 3.0)],
        ];
        let choice = Choice::new(vec![9], weights, groups);
        let mut best = f64::INFINITY;
        for a in 0..choice.groups[0].len() {
            for b in 0..choice.groups[1].len() {
                for c in 0..choice.groups[2].len() {
                    if choice.fits(&choice.used(&[a, b, c])) {
                        best = best.min(choice.cost(&[a, b, c]));
                    }
                }
            }
        }
        let surcharges = choice.surcharges(&[9.0]);
        let mut draft = Draft::new(&choice, vec![0; 3]);
        assert!(!draft.fits(), "the cheapest entries are the heaviest");
        assert!(draft.repair(&surcharges) && draft.fits());
        draft.fill();
        draft.exchange(&surcharges, &Stopwatch::start(10.0));
        assert!(draft.fits());
        assert_eq!(draft.cost(), best);
        assert_eq!(
            draft.used,
            choice.used(&draft.pick),
            "the running sums are right"
        );
    }

    #[test]
    fn repair_gives_up_where_nothing_fits() {
        let groups = vec![vec![Entry { key: 0, cost: 0.0 }, Entry { key: 1, cost: 1.0 }]; 2];
        let choice = Choice::new(vec![3], vec![4, 2], groups);
        assert!(!Draft::new(&choice, vec![0, 0]).repair(&choice.surcharges(&[1.0])));
    }
}
