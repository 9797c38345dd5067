//! One layer under prices: its best sets of at most K rules, by enumeration with a bound.

use crate::choice::surcharge;

/// Sets that one search may look at before it settles for a weaker bound (never reached by pairs of 2,000 rules).
const MAX_NODES: usize = 4_000_000;

/// The costs of one layer.
pub(crate) struct Layer<'a> {
    /// Rules that some head of the layer may want, by candidate.
    pub(crate) rules: Vec<u32>,
    /// `costs[head * candidates + candidate]`.
    pub(crate) costs: &'a [f64],
    pub(crate) candidates: usize,
    pub(crate) weights: &'a [Vec<u64>],
    caps: &'a [u64],
}

/// One layer under prices: the best sets, and a bound on all sets.
pub(crate) struct PricedLayer {
    pub(crate) bound: f64,
    /// Best first: value and sorted rules.
    pub(crate) sets: Vec<(f64, Vec<u32>)>,
}

impl<'a> Layer<'a> {
    pub(crate) fn new(costs: &'a [f64], weights: &'a [Vec<u64>], caps: &'a [u64]) -> Self {
        let candidates = weights.len();
        let heads = costs.len() / candidates;
        // A rule goes when another one is no heavier and no dearer on any head of the layer.
        let beats = |a: usize, b: usize| {
            (0..heads).all(|head| costs[head * candidates + a] <= costs[head * candidates + b])
                && weights[a].iter().zip(&weights[b]).all(|(a, b)| a <= b)
        };
        let rules = (0..candidates)
            .filter(|&b| !(0..candidates).any(|a| a != b && beats(a, b) && (a < b || !beats(b, a))))
            .filter_map(|rule| u32::try_from(rule).ok())
            .collect();
        Self {
            rules,
            costs,
            candidates,
            weights,
            caps,
        }
    }

    pub(crate) fn heads(&self) -> usize {
        self.costs.len() / self.candidates
    }

    fn surcharge(&self, rule: u32, prices: &[f64]) -> f64 {
        surcharge(&self.weights[rule as usize], self.caps, prices)
    }

    /// The `keep` best sets of at most `limit` rules under `prices`.
    pub(crate) fn priced(&self, prices: &[f64], limit: usize, keep: usize) -> PricedLayer {
        let heads = self.heads();
        let mut priced: Vec<(u32, Vec<f64>)> = self
            .rules
            .iter()
            .map(|&rule| {
                let surcharge = self.surcharge(rule, prices);
                let of_head = |head| self.costs[head * self.candidates + rule as usize] + surcharge;
                (rule, (0..heads).map(of_head).collect())
            })
            .collect();
        // Rules that are cheap on the whole come first, so that the bound on the rest rises early.
        priced.sort_by(|a, b| {
            let total = |costs: &[f64]| costs.iter().sum::<f64>();
            total(&a.1).total_cmp(&total(&b.1)).then(a.0.cmp(&b.0))
        });
        let mut rest = vec![vec![f64::INFINITY; heads]; priced.len() + 1];
        for at in (0..priced.len()).rev() {
            rest[at] = least(&priced[at].1, &rest[at + 1]);
        }
        let mut search = SetSearch {
            priced: &priced,
            rest: &rest,
            limit,
            keep,
            sets: Vec::new(),
            nodes: 0,
            skipped: f64::INFINITY,
        };
        search.extend(&vec![f64::INFINITY; heads], &mut Vec::new(), 0);
        let best = search.sets.first().map_or(f64::INFINITY, |set| set.0);
        PricedLayer {
            bound: best.min(search.skipped),
            sets: search.sets,
        }
    }

    /// Every head's cheapest rule of `set` under `prices`.
    pub(crate) fn assign(&self, set: &[u32], prices: &[f64]) -> Vec<u32> {
        let surcharges: Vec<f64> = set
            .iter()
            .map(|&rule| self.surcharge(rule, prices))
            .collect();
        self.costs
            .chunks_exact(self.candidates)
            .map(|costs| {
                let cost = |at: usize| costs[set[at] as usize] + surcharges[at];
                (0..set.len())
                    .min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
                    .map_or(0, |at| set[at])
            })
            .collect()
    }

    pub(crate) fn used(&self, rules: &[u32]) -> Vec<u64> {
        (0..self.caps.len())
            .map(|row| {
                rules
                    .iter()
                    .map(|&rule| self.weights[rule as usize][row])
                    .sum()
            })
            .collect()
    }

    pub(crate) fn cost(&self, rules: &[u32]) -> f64 {
        rules
            .iter()
            .zip(self.costs.chunks_exact(self.candidates))
            .map(|(&rule, costs)| costs[rule as usize])
            .sum()
    }
}

fn least(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a.min(*b)).collect()
}

fn sum_of_least(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.min(*b)).sum()
}

/// Depth-first enumeration of rule sets, cut where even the best of all remaining rules on every head is no better
/// than the worst set kept.
struct SetSearch<'a> {
    /// Rules with their cost on every head, surcharge included.
    priced: &'a [(u32, Vec<f64>)],
    /// `rest[i]`: the least cost on every head among rules `i..`.
    rest: &'a [Vec<f64>],
    limit: usize,
    keep: usize,
    /// Best first.
    sets: Vec<(f64, Vec<u32>)>,
    nodes: usize,
    /// The least bound of what was skipped when `nodes` ran out.
    skipped: f64,
}

impl SetSearch<'_> {
    fn worst_kept(&self) -> f64 {
        if self.sets.len() < self.keep {
            f64::INFINITY
        } else {
            self.sets.last().map_or(f64::INFINITY, |set| set.0)
        }
    }

    fn offer(&mut self, value: f64, rules: &[u32]) {
        if value >= self.worst_kept() {
            return;
        }
        let mut rules = rules.to_vec();
        rules.sort_unstable();
        let at = self.sets.partition_point(|set| set.0 <= value);
        self.sets.insert(at, (value, rules));
        self.sets.truncate(self.keep);
    }

    fn extend(&mut self, costs: &[f64], rules: &mut Vec<u32>, from: usize) {
        for at in from..self.priced.len() {
            let bound = sum_of_least(costs, &self.rest[at]);
            if bound >= self.worst_kept() {
                return;
            }
            if self.nodes >= MAX_NODES {
                self.skipped = self.skipped.min(bound);
                return;
            }
            self.nodes += 1;
            let (rule, of_rule) = &self.priced[at];
            rules.push(*rule);
            if rules.len() == self.limit {
                self.offer(sum_of_least(costs, of_rule), rules);
            } else {
                let costs = least(costs, of_rule);
                self.offer(costs.iter().sum(), rules);
                self.extend(&costs, rules, at + 1);
            }
            rules.pop();
        }
    }
}
