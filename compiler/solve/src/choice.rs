//! The programme in its bare form: one entry from every group, at the least cost, within capacities.
//!
//! Without a limit per layer the groups are the heads and the entries their rules; with one, the groups are the layers
//! and the entries whole columns. Everything that prices, repairs or solves works on this form alone.

use crate::Problem;

/// One entry of a group: its cost, and the key of its row in the table of weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: u32,
    pub(crate) cost: f64,
}

/// Pick one entry a group. Groups are never empty; a pick is an index into a group's entries.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// Capacity of every row, in tokens. Only rows that can bind are kept.
    pub(crate) caps: Vec<u64>,
    /// Which of the rows given to [`Choice::new`] these are.
    pub(crate) rows: Vec<usize>,
    /// `weights[key * caps.len() + row]`, in tokens.
    weights: Vec<u64>,
    pub(crate) groups: Vec<Vec<Entry>>,
}

/// The cheapest picks under prices.
#[derive(Debug, Clone)]
pub(crate) struct Priced {
    /// A lower bound on the cost of every selection within the capacities.
    pub(crate) value: f64,
    pub(crate) pick: Vec<usize>,
    pub(crate) used: Vec<u64>,
}

impl Choice {
    /// The programme over heads, dominated rules pruned per head.
    pub(crate) fn of_heads(problem: &Problem) -> Self {
        let caps = problem
            .budgets
            .iter()
            .map(|budget| problem.capacity(budget))
            .collect();
        let weights = (0..problem.candidates.len())
            .flat_map(|candidate| {
                problem
                    .budgets
                    .iter()
                    .map(move |budget| problem.kept(candidate, budget))
            })
            .collect();
        let groups = problem
            .costs
            .chunks_exact(problem.candidates.len())
            .map(|costs| {
                (0..)
                    .zip(costs)
                    .map(|(key, &cost)| Entry { key, cost })
                    .collect()
            })
            .collect();
        Self::new(caps, weights, groups)
    }

    /// A programme from its tables. Rows that cannot bind and dominated entries are dropped; keys stay.
    pub(crate) fn new(caps: Vec<u64>, weights: Vec<u64>, groups: Vec<Vec<Entry>>) -> Self {
        let rows = caps.len();
        let heaviest = |row: usize| -> u64 {
            let of_group = |group: &Vec<Entry>| {
                group
                    .iter()
                    .map(|entry| weights[entry.key as usize * rows + row])
                    .max()
                    .unwrap_or(0)
            };
            groups.iter().map(of_group).sum()
        };
        let binding: Vec<usize> = (0..rows).filter(|&row| heaviest(row) > caps[row]).collect();
        let mut choice = Self {
            weights: if rows == 0 {
                Vec::new()
            } else {
                weights
                    .chunks_exact(rows)
                    .flat_map(|of_key| binding.iter().map(|&row| of_key[row]))
                    .collect()
            },
            caps: binding.iter().map(|&row| caps[row]).collect(),
            rows: binding,
            groups,
        };
        choice.prune_dominated();
        choice
    }

    pub(crate) fn weight(&self, key: u32) -> &[u64] {
        let rows = self.caps.len();
        &self.weights[key as usize * rows..][..rows]
    }

    /// Drops every entry that another one of its group beats or equals in cost and in all rows. What is left is in
    /// order of rising cost.
    fn prune_dominated(&mut self) {
        let mut groups = std::mem::take(&mut self.groups);
        for group in &mut groups {
            group.sort_by(|a, b| {
                let light = |entry: &Entry| self.weight(entry.key).iter().sum::<u64>();
                a.cost
                    .total_cmp(&b.cost)
                    .then_with(|| light(a).cmp(&light(b)))
                    .then_with(|| a.key.cmp(&b.key))
            });
            let mut kept: Vec<Entry> = Vec::new();
            for &entry in group.iter() {
                let weight = self.weight(entry.key);
                let beaten = |other: &Entry| {
                    self.weight(other.key)
                        .iter()
                        .zip(weight)
                        .all(|(lighter, own)| lighter <= own)
                };
                if !kept.iter().any(beaten) {
                    kept.push(entry);
                }
            }
            *group = kept;
        }
        self.groups = groups;
    }

    /// What an entry of each key pays for its weight; prices are per whole capacity.
    pub(crate) fn surcharges(&self, prices: &[f64]) -> Vec<f64> {
        let rows = self.caps.len();
        if rows == 0 {
            let keys = self
                .groups
                .iter()
                .flatten()
                .map(|entry| entry.key as usize + 1);
            return vec![0.0; keys.max().unwrap_or(0)];
        }
        self.weights
            .chunks_exact(rows)
            .map(|weights| surcharge(weights, &self.caps, prices))
            .collect()
    }

    /// Every group's cheapest entry under `prices`.
    pub(crate) fn priced(&self, prices: &[f64]) -> Priced {
        let surcharges = self.surcharges(prices);
        let mut value = -prices.iter().sum::<f64>();
        let mut pick = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let (best, cost) = cheapest(group, &surcharges);
            value += cost;
            pick.push(best);
        }
        let used = self.used(&pick);
        Priced { value, pick, used }
    }

    pub(crate) fn used(&self, pick: &[usize]) -> Vec<u64> {
        let mut used = vec![0; self.caps.len()];
        for (group, &entry) in self.groups.iter().zip(pick) {
            for (used, weight) in used.iter_mut().zip(self.weight(group[entry].key)) {
                *used += weight;
            }
        }
        used
    }

    pub(crate) fn fits(&self, used: &[u64]) -> bool {
        used.iter().zip(&self.caps).all(|(used, cap)| used <= cap)
    }

    pub(crate) fn cost(&self, pick: &[usize]) -> f64 {
        self.groups
            .iter()
            .zip(pick)
            .map(|(group, &entry)| group[entry].cost)
            .sum()
    }

    pub(crate) fn keys(&self, pick: &[usize]) -> Vec<u32> {
        self.groups
            .iter()
            .zip(pick)
            .map(|(group, &entry)| group[entry].key)
            .collect()
    }

    /// Sum over groups of the difference between the dearest and the cheapest entry.
    pub(crate) fn range(&self) -> f64 {
        self.groups
            .iter()
            .map(|group| match (group.first(), group.last()) {
                (Some(cheapest), Some(dearest)) => dearest.cost - cheapest.cost,
                _ => 0.0,
            })
            .sum()
    }

    /// Without the entries that no selection cheaper than `pick` can hold: under `prices`, whose value is `bound`,
    /// taking them costs more than the difference. Returns the smaller programme and `pick` in it.
    pub(crate) fn reduced(&self, prices: &[f64], bound: f64, pick: &[usize]) -> (Self, Vec<usize>) {
        let surcharges = self.surcharges(prices);
        let window = self.cost(pick) - bound;
        let mut groups = Vec::with_capacity(self.groups.len());
        let mut picks = Vec::with_capacity(self.groups.len());
        for (group, &own) in self.groups.iter().zip(pick) {
            let (_, least) = cheapest(group, &surcharges);
            let mut kept = Vec::new();
            for (at, &entry) in group.iter().enumerate() {
                let penalty = entry.cost + surcharges[entry.key as usize] - least;
                if at == own {
                    picks.push(kept.len());
                }
                if at == own || penalty <= window {
                    kept.push(entry);
                }
            }
            groups.push(kept);
        }
        let reduced = Self {
            caps: self.caps.clone(),
            rows: self.rows.clone(),
            weights: self.weights.clone(),
            groups,
        };
        (reduced, picks)
    }
}

/// What an entry of these weights pays; prices are per whole capacity.
pub(crate) fn surcharge(weights: &[u64], caps: &[u64], prices: &[f64]) -> f64 {
    weights
        .iter()
        .zip(caps)
        .zip(prices)
        .map(|((&weight, &cap), price)| price * share(weight, cap))
        .sum()
}

/// `weight` as a part of `cap`.
#[expect(clippy::cast_precision_loss, reason = "token counts stay below 2^53")]
pub(crate) fn share(weight: u64, cap: u64) -> f64 {
    weight as f64 / (cap as f64).max(1.0)
}

fn cheapest(group: &[Entry], surcharges: &[f64]) -> (usize, f64) {
    let mut best = (0, f64::INFINITY);
    for (at, entry) in group.iter().enumerate() {
        let cost = entry.cost + surcharges[entry.key as usize];
        if cost < best.1 {
            best = (at, cost);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u32, cost: f64) -> Entry {
        Entry { key, cost }
    }

    #[test]
    fn dominated_entries_and_slack_rows_go() {
        // Row 1 can never bind: three groups of at most 5 against 15.
        let weights = vec![1, 5, 2, 5, 3, 5, 2, 4];
        let groups = vec![
            vec![entry(0, 3.0), entry(1, 2.0), entry(2, 2.5), entry(3, 2.0)],
            vec![entry(0, 1.0), entry(1, 1.0), entry(2, 1.0)],
            vec![entry(2, 0.0), entry(1, 5.0), entry(0, 5.0)],
        ];
        let choice = Choice::new(vec![4, 15], weights, groups);
        assert_eq!(choice.caps, [4]);
        assert_eq!(choice.groups[0], [entry(1, 2.0), entry(0, 3.0)]);
        assert_eq!(choice.groups[1], [entry(0, 1.0)]);
        assert_eq!(choice.groups[2], [entry(2, 0.0), entry(0, 5.0)]);
        assert_eq!(choice.range(), 6.0);
    }

    #[test]
    fn prices_bound_from_below_and_reduction_keeps_the_best() {
        let weights = vec![4, 2, 1];
        let group = vec![entry(0, 0.0), entry(1, 1.0), entry(2, 3.0)];
        let choice = Choice::new(vec![5], weights, vec![group.clone(), group]);
        // Best: (1, 1) with cost 2, weight 4; (0, 2) costs 3 with weight 5.
        for step in 0..40 {
            let priced = choice.priced(&[f64::from(step) * 0.1]);
            assert!(priced.value <= 2.0 + 1e-12, "{priced:?}");
        }
        let priced = choice.priced(&[2.6]);
        let (reduced, pick) = choice.reduced(&[2.6], priced.value, &[1, 1]);
        assert_eq!(reduced.keys(&pick), [1, 1]);
        assert!(
            reduced
                .groups
                .iter()
                .all(|group| group.iter().any(|entry| entry.key == 1))
        );
        assert_eq!(choice.cost(&[1, 1]), 2.0);
        assert!(choice.fits(&choice.used(&[0, 2])) && !choice.fits(&choice.used(&[0, 1])));
    }
}
