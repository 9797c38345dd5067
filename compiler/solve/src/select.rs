//! Solves one programme in its bare form: prices first, then HiGHS on what the prices leave open.

use crate::choice::{Choice, share};
use crate::dual::{self, Best, Point};
use crate::primal::Draft;
use crate::problem::relative_gap;
use crate::stopwatch::Stopwatch;
use crate::{Options, Result};

/// Share of the time limit after which prices are no longer refined.
const PRICING_SHARE: f64 = 0.4;
const MAX_EVALUATIONS: usize = 4000;

/// What was chosen, by the keys of the programme.
#[derive(Debug, Clone)]
pub(crate) struct Selected {
    /// Key of every group's entry, if a selection within the capacities was found.
    pub(crate) keys: Option<Vec<u32>>,
    /// No selection costs less.
    pub(crate) bound: f64,
    /// Whether it was shown that no selection fits.
    pub(crate) proven_infeasible: bool,
    /// Whether HiGHS had the last word.
    pub(crate) used_highs: bool,
    /// The best prices per whole capacity of the binding rows.
    #[cfg_attr(
        not(feature = "highs"),
        expect(dead_code, reason = "only HiGHS needs them again")
    )]
    pub(crate) prices: Vec<f64>,
}

/// Branches of HiGHS's tree before it settles for what it has: none is too many.
pub(crate) const ANY_NODES: i32 = i32::MAX;

/// Solves `choice`; `nodes` bounds HiGHS's tree, which unlike time is the same on every machine.
pub(crate) fn select(
    choice: &Choice,
    nodes: i32,
    options: &Options,
    watch: &Stopwatch,
) -> Result<Selected> {
    let (best, mut incumbent) = price(choice, watch);
    let range = choice.range();
    let mut selected = Selected {
        keys: None,
        bound: best.value,
        proven_infeasible: false,
        used_highs: false,
        prices: best.prices.clone(),
    };
    if let Some(pick) = &mut incumbent {
        // The exchange works best on the few entries that can still matter, and each gain leaves fewer of them.
        for _ in 0..3 {
            let before = choice.cost(pick);
            let (reduced, start) = choice.reduced(&best.prices, best.value, pick);
            let mut draft = Draft::new(&reduced, start);
            draft.exchange(&reduced.surcharges(&best.prices), watch);
            *pick = find(choice, &reduced.keys(&draft.pick));
            if choice.cost(pick) >= before {
                break;
            }
        }
        selected.keys = Some(choice.keys(pick));
    } else {
        let dearest: f64 = choice
            .groups
            .iter()
            .filter_map(|group| group.last())
            .map(|entry| entry.cost)
            .sum();
        selected.proven_infeasible = best.value > dearest + range * 1e-9;
    }
    let settled = selected.proven_infeasible
        || incumbent.as_ref().is_some_and(|pick| {
            relative_gap(choice.cost(pick), selected.bound, range) <= options.gap
        });
    if !settled && options.solver.highs()? {
        close(
            choice,
            incumbent.as_deref(),
            nodes,
            options,
            watch,
            &mut selected,
        )?;
    }
    Ok(selected)
}

#[cfg(feature = "highs")]
fn close(
    choice: &Choice,
    incumbent: Option<&[usize]>,
    nodes: i32,
    options: &Options,
    watch: &Stopwatch,
    selected: &mut Selected,
) -> Result<()> {
    let (open, start) = match incumbent {
        Some(pick) => {
            let (reduced, start) = choice.reduced(&selected.prices, selected.bound, pick);
            (reduced, Some(start))
        }
        None => (choice.clone(), None),
    };
    tracing::debug!(
        entries = choice.groups.iter().map(Vec::len).sum::<usize>(),
        open = open.groups.iter().map(Vec::len).sum::<usize>(),
        "left open by the prices"
    );
    let closed = crate::mip::solve(
        &open,
        start.as_deref(),
        selected.bound,
        nodes,
        options,
        watch,
    )?;
    selected.used_highs = true;
    selected.proven_infeasible = closed.infeasible;
    if let Some(pick) = closed.pick {
        selected.keys = Some(open.keys(&pick));
    }
    selected.bound = selected.bound.max(closed.bound);
    Ok(())
}

#[cfg(not(feature = "highs"))]
#[expect(
    clippy::unnecessary_wraps,
    reason = "the signature of the build that has HiGHS"
)]
fn close(
    _: &Choice,
    _: Option<&[usize]>,
    _: i32,
    _: &Options,
    _: &Stopwatch,
    _: &mut Selected,
) -> Result<()> {
    Ok(())
}

/// The best prices for all of the `rows` that `choice` was made from. Those that cannot bind cost nothing.
pub(crate) fn prices(choice: &Choice, rows: usize, watch: &Stopwatch) -> Vec<f64> {
    let (best, _) = price(choice, watch);
    let mut prices = vec![0.0; rows];
    for (&row, price) in choice.rows.iter().zip(best.prices) {
        prices[row] = price;
    }
    prices
}

/// The entries of `keys` in `choice`.
fn find(choice: &Choice, keys: &[u32]) -> Vec<usize> {
    choice
        .groups
        .iter()
        .zip(keys)
        .map(|(group, key)| {
            group
                .iter()
                .position(|entry| entry.key == *key)
                .unwrap_or(0)
        })
        .collect()
}

/// The best prices, and the best selection that the search met or repaired.
fn price(choice: &Choice, watch: &Stopwatch) -> (Best, Option<Vec<usize>>) {
    let free = choice.priced(&vec![0.0; choice.caps.len()]);
    let mut best = Best {
        prices: vec![0.0; choice.caps.len()],
        value: free.value,
    };
    if choice.fits(&free.used) {
        return (best, Some(free.pick));
    }
    let range = choice.range();
    let mut met: Option<(f64, Vec<usize>)> = None;
    let radius = radius(choice, free.value, range);
    let center: Vec<f64> = radius.iter().map(|radius| radius / 2.0).collect();
    let found = dual::maximize(&center, &center, range * 1e-9, MAX_EVALUATIONS, |prices| {
        if watch.past(PRICING_SHARE) {
            return None;
        }
        let priced = choice.priced(prices);
        if choice.fits(&priced.used) {
            let cost = choice.cost(&priced.pick);
            if met.as_ref().is_none_or(|(least, _)| cost < *least) {
                met = Some((cost, priced.pick.clone()));
            }
        }
        Some(Point {
            value: priced.value,
            ceiling: priced.value,
            slope: priced
                .used
                .iter()
                .zip(&choice.caps)
                .map(|(&used, &cap)| share(used, cap) - 1.0)
                .collect(),
        })
    });
    if let Some(found) = found.filter(|found| found.value > best.value) {
        best = found;
    }

    // Repair the cheapest selection under the prices, and under a few prices nearby.
    let mut drafts: Vec<Vec<usize>> = [1.0, 0.9, 0.97, 1.03, 1.1]
        .iter()
        .map(|factor| {
            let prices: Vec<f64> = best.prices.iter().map(|price| price * factor).collect();
            choice.priced(&prices).pick
        })
        .collect();
    drafts.push(lightest(choice));
    drafts.extend(met.map(|(_, pick)| pick));
    let surcharges = choice.surcharges(&best.prices);
    let mut incumbent: Option<(f64, Vec<usize>)> = None;
    for pick in drafts {
        let mut draft = Draft::new(choice, pick);
        if !draft.repair(&surcharges) {
            continue;
        }
        draft.fill();
        let cost = draft.cost();
        if incumbent.as_ref().is_none_or(|(least, _)| cost < *least) {
            incumbent = Some((cost, draft.pick));
        }
        if watch.past(2.0 * PRICING_SHARE) {
            break;
        }
    }
    (best, incumbent.map(|(_, pick)| pick))
}

/// Every group's lightest entry, by its largest share of any row.
fn lightest(choice: &Choice) -> Vec<usize> {
    let largest_share = |key: u32| {
        let shares = choice.weight(key).iter().zip(&choice.caps);
        shares
            .map(|(&weight, &cap)| share(weight, cap))
            .fold(0.0, f64::max)
    };
    choice
        .groups
        .iter()
        .map(|group| {
            let shares: Vec<f64> = group.iter().map(|entry| largest_share(entry.key)).collect();
            (0..group.len())
                .min_by(|&a, &b| shares[a].total_cmp(&shares[b]))
                .unwrap_or(0)
        })
        .collect()
}

/// How large each price can be at most. With a selection that leaves the part s of a row free and costs c, the value
/// at price p is at most c - p s, so no p beyond (c - value at 0) / s is better than 0.
fn radius(choice: &Choice, free_value: f64, range: f64) -> Vec<f64> {
    let pick = lightest(choice);
    let used = choice.used(&pick);
    let fits = choice.fits(&used);
    let spread = if fits {
        (choice.cost(&pick) - free_value).max(range * 1e-9)
    } else if range > 0.0 {
        range
    } else {
        1.0
    };
    used.iter()
        .zip(&choice.caps)
        .map(|(&used, &cap)| {
            let slack = 1.0 - share(used, cap);
            // A row without slack bounds no price; a large one is tried, and any price gives a valid bound.
            let slack = if fits { slack.max(1e-4) } else { 1e-4 };
            spread / slack
        })
        .collect()
}
