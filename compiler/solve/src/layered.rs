//! At most K rules in a layer: price the layers, make columns of their best rule sets, pick one column a layer.
//!
//! Under prices on the density rows the layers are independent. For one layer, the best set of K rules, with every
//! head taking its cheapest rule of the set, is found by enumeration with a bound (pairs for K = 2). The sum over
//! layers bounds the optimum from below; the best sets, with the heads' choices under several prices, are the columns
//! of a small programme in its bare form. Last, the heads choose again among the rules that their layer ended with.

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::choice::{Choice, Entry, share};
use crate::dual::{self, Best, Point};
use crate::layer::{Layer, PricedLayer};
use crate::select::{self, Selected};
use crate::stopwatch::Stopwatch;
use crate::{Options, Problem, Result};

/// Rule sets per layer that become columns.
const POOL: usize = 48;
const MAX_EVALUATIONS: usize = 400;
/// Gap within which the best choice of columns is good enough.
const COLUMN_GAP: f64 = 5e-5;
/// Branches that HiGHS may spend on columns.
const COLUMN_NODES: i32 = 200;
/// Up to so many ways of giving a set's rules to a layer's heads, all of them become columns.
const MAX_WAYS: usize = 64;
/// Factors on the prices under which the heads of a column choose.
const PRICE_FACTORS: [f64; 9] = [1.0, 0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.4, 2.0];
/// Shares of the time limit that pricing and the choice of columns end by.
const PRICING_SHARE: f64 = 0.4;

/// Solves `problem` with at most `limit` rules in a layer.
pub(crate) fn select(
    problem: &Problem,
    limit: usize,
    options: &Options,
    watch: &Stopwatch,
) -> Result<Selected> {
    let caps: Vec<u64> = problem
        .budgets
        .iter()
        .map(|budget| problem.capacity(budget))
        .collect();
    let weights: Vec<Vec<u64>> = (0..problem.candidates.len())
        .map(|candidate| {
            problem
                .budgets
                .iter()
                .map(|budget| problem.kept(candidate, budget))
                .collect()
        })
        .collect();
    let layers: Vec<Layer<'_>> = problem
        .costs
        .chunks_exact(problem.kv_heads * problem.candidates.len())
        .map(|costs| Layer::new(costs, &weights, &caps))
        .collect();

    let (best, met) = price(&layers, &caps, limit, watch);
    tracing::debug!(bound = best.value, secs = watch.secs(), "layers priced");
    let columns = columns(&layers, &caps, &best.prices, limit, met);
    let chosen = choose_columns(problem, &columns, &caps, options, watch)?;
    let Some(picked) = &chosen.keys else {
        // That no columns fit proves nothing about the sets that are not among them.
        return Ok(Selected {
            proven_infeasible: false,
            ..chosen
        });
    };

    // The columns fix which rules a layer has; its heads may still choose better among them.
    let rules: Vec<u32> = picked
        .iter()
        .flat_map(|&key| columns.rules_of(key, problem.kv_heads).iter().copied())
        .collect();
    let again = choose_again(problem, &rules, &weights, &caps, options, watch)?;
    let cost = |rules: &[u32]| -> f64 {
        problem.objective(&rules.iter().map(|&rule| rule as usize).collect::<Vec<_>>())
    };
    let keys = match again.keys {
        Some(again) if cost(&again) < cost(&rules) => again,
        _ => rules,
    };
    Ok(Selected {
        keys: Some(keys),
        bound: best.value,
        proven_infeasible: false,
        used_highs: chosen.used_highs || again.used_highs,
        prices: best.prices,
    })
}

/// Assignments of every layer, each with one rule a head.
type Assignments = Vec<BTreeSet<Vec<u32>>>;

/// The prices with the highest bound over all layers, and the assignments that were best under some prices on the
/// way: near the end of the search these are what an optimal mix is made of.
fn price(
    layers: &[Layer<'_>],
    caps: &[u64],
    limit: usize,
    watch: &Stopwatch,
) -> (Best, Assignments) {
    let mut met = vec![BTreeSet::new(); layers.len()];
    let mut evaluate = |prices: &[f64]| {
        let priced: Vec<PricedLayer> = layers
            .par_iter()
            .map(|layer| layer.priced(prices, limit, 1))
            .collect();
        let charge: f64 = prices.iter().sum();
        let mut point = Point {
            value: -charge,
            ceiling: -charge,
            slope: vec![-1.0; caps.len()],
        };
        for ((layer, priced), met) in layers.iter().zip(&priced).zip(&mut met) {
            point.value += priced.bound;
            let Some((value, set)) = priced.sets.first() else {
                continue;
            };
            point.ceiling += value;
            let rules = layer.assign(set, prices);
            let used = layer.used(&rules);
            met.insert(rules);
            for ((slope, used), &cap) in point.slope.iter_mut().zip(used).zip(caps) {
                *slope += share(used, cap);
            }
        }
        point
    };
    let free = evaluate(&vec![0.0; caps.len()]);
    let mut best = Best {
        prices: vec![0.0; caps.len()],
        value: free.value,
    };
    if free.slope.iter().all(|slope| *slope <= 0.0) {
        return (best, met);
    }
    // Without the limit prices cost little to find, and they give the scale of those with the limit. The box may miss
    // the best point; that weakens the bound and nothing else.
    let total: f64 = unlimited_prices(layers, caps, watch).iter().sum();
    let center = vec![2.0 * total; caps.len()];
    let tolerance = free.value.abs().max(total) * 1e-7;
    let found = dual::maximize(&center, &center, tolerance, MAX_EVALUATIONS, |prices| {
        (!watch.past(PRICING_SHARE)).then(|| evaluate(prices))
    });
    if let Some(found) = found.filter(|found| found.value > best.value) {
        best = found;
    }
    (best, met)
}

/// The best prices when a layer may use any number of rules.
fn unlimited_prices(layers: &[Layer<'_>], caps: &[u64], watch: &Stopwatch) -> Vec<f64> {
    let groups = layers
        .iter()
        .flat_map(|layer| {
            layer.costs.chunks_exact(layer.candidates).map(|costs| {
                (0..)
                    .zip(costs)
                    .map(|(key, &cost)| Entry { key, cost })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let weights = layers
        .first()
        .map_or_else(Vec::new, |layer| layer.weights.concat());
    let choice = Choice::new(caps.to_vec(), weights, groups);
    select::prices(&choice, caps.len(), watch)
}

/// Whole-layer assignments on offer.
struct Columns {
    /// Rules of all columns, one after the other.
    rules: Vec<u32>,
    weights: Vec<u64>,
    /// Columns of every layer.
    groups: Vec<Vec<Entry>>,
}

impl Columns {
    fn rules_of(&self, key: u32, kv_heads: usize) -> &[u32] {
        &self.rules[key as usize * kv_heads..][..kv_heads]
    }
}

fn columns(
    layers: &[Layer<'_>],
    caps: &[u64],
    prices: &[f64],
    limit: usize,
    met: Assignments,
) -> Columns {
    // One price moved alone shifts a layer's use between lengths.
    let mut variants: Vec<Vec<f64>> = PRICE_FACTORS
        .iter()
        .map(|factor| prices.iter().map(|price| price * factor).collect())
        .collect();
    let mean = prices.iter().sum::<f64>() / caps.len().max(1) as f64;
    for row in 0..prices.len() {
        for factor in [0.5, 1.5] {
            let mut moved = prices.to_vec();
            moved[row] = (moved[row] * factor).max(mean * (factor - 1.0).max(0.0));
            variants.push(moved);
        }
    }
    let of_layers: Assignments = layers
        .par_iter()
        .zip(met)
        .map(|(layer, mut assignments)| {
            for (_, set) in layer.priced(prices, limit, POOL).sets {
                if ways(set.len(), layer.heads()) <= MAX_WAYS {
                    assignments.extend(all_ways(&set, layer.heads()));
                } else {
                    for prices in &variants {
                        assignments.insert(layer.assign(&set, prices));
                    }
                }
            }
            // One rule for the whole layer: the smallest spans are among these, so a plan is always found.
            for &rule in &layer.rules {
                assignments.insert(vec![rule; layer.heads()]);
            }
            assignments
        })
        .collect();
    let mut columns = Columns {
        rules: Vec::new(),
        weights: Vec::new(),
        groups: Vec::with_capacity(layers.len()),
    };
    let mut key = 0;
    for (layer, assignments) in layers.iter().zip(of_layers) {
        let mut group = Vec::with_capacity(assignments.len());
        for rules in assignments {
            group.push(Entry {
                key,
                cost: layer.cost(&rules),
            });
            columns.weights.extend(layer.used(&rules));
            columns.rules.extend(rules);
            key += 1;
        }
        columns.groups.push(group);
    }
    columns
}

fn ways(rules: usize, heads: usize) -> usize {
    u32::try_from(heads)
        .ok()
        .and_then(|heads| rules.checked_pow(heads))
        .unwrap_or(usize::MAX)
}

fn all_ways(set: &[u32], heads: usize) -> impl Iterator<Item = Vec<u32>> + '_ {
    (0..ways(set.len(), heads)).map(move |mut code| {
        (0..heads)
            .map(|_| {
                let rule = set[code % set.len()];
                code /= set.len();
                rule
            })
            .collect()
    })
}

fn choose_columns(
    problem: &Problem,
    columns: &Columns,
    caps: &[u64],
    options: &Options,
    watch: &Stopwatch,
) -> Result<Selected> {
    let choice = Choice::new(
        caps.to_vec(),
        columns.weights.clone(),
        columns.groups.clone(),
    );
    tracing::debug!(
        columns = choice.groups.iter().map(Vec::len).sum::<usize>(),
        layers = problem.layers,
        "columns"
    );
    // The best of these columns is not the best plan: closing their gap entirely would be time ill spent.
    let options = Options {
        gap: options.gap.max(COLUMN_GAP),
        ..*options
    };
    select::select(&choice, COLUMN_NODES, &options, watch)
}

/// The heads choose anew among the rules of their layer.
fn choose_again(
    problem: &Problem,
    rules: &[u32],
    weights: &[Vec<u64>],
    caps: &[u64],
    options: &Options,
    watch: &Stopwatch,
) -> Result<Selected> {
    let groups = rules
        .chunks(problem.kv_heads)
        .flat_map(|of_layer| {
            let distinct: BTreeSet<u32> = of_layer.iter().copied().collect();
            vec![distinct; of_layer.len()]
        })
        .zip(problem.costs.chunks_exact(problem.candidates.len()))
        .map(|(distinct, costs)| {
            distinct
                .into_iter()
                .map(|key| Entry {
                    key,
                    cost: costs[key as usize],
                })
                .collect()
        })
        .collect();
    let choice = Choice::new(caps.to_vec(), weights.concat(), groups);
    select::select(&choice, COLUMN_NODES, options, watch)
}
