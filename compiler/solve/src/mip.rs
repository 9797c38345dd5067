//! The programme handed to HiGHS: a binary per entry, one equality per group, one row per budget.

use highs::{Col, HighsModelStatus, HighsSolutionStatus, RowProblem, Sense};

use crate::choice::Choice;
use crate::problem::relative_gap;
use crate::stopwatch::Stopwatch;
use crate::{Error, Options, Result};

/// Largest cost that HiGHS sees. Its tolerances are absolute, influences may be 1e-9.
const SCALED_COST: f64 = 1e4;

/// What HiGHS found.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    pub(crate) pick: Option<Vec<usize>>,
    pub(crate) bound: f64,
    pub(crate) infeasible: bool,
}

/// Solves `choice`. `start` is a selection within the capacities; entries that cannot beat it may be missing, so no
/// bound above its cost is claimed.
pub(crate) fn solve(
    choice: &Choice,
    start: Option<&[usize]>,
    known_bound: f64,
    nodes: i32,
    options: &Options,
    watch: &Stopwatch,
) -> Result<Closed> {
    // Costs count from each group's cheapest entry, which changes the objective by a constant.
    let floors: Vec<f64> = choice
        .groups
        .iter()
        .map(|group| group.first().map_or(0.0, |entry| entry.cost))
        .collect();
    let floor: f64 = floors.iter().sum();
    let largest = choice
        .groups
        .iter()
        .zip(&floors)
        .flat_map(|(group, floor)| group.iter().map(move |entry| entry.cost - floor))
        .fold(0.0, f64::max);
    let scale = if largest > 0.0 {
        SCALED_COST / largest
    } else {
        1.0
    };

    let mut problem = RowProblem::new();
    let mut columns: Vec<Vec<Col>> = Vec::with_capacity(choice.groups.len());
    for (group, floor) in choice.groups.iter().zip(&floors) {
        columns.push(
            group
                .iter()
                .map(|entry| problem.add_integer_column((entry.cost - floor) * scale, 0.0..=1.0))
                .collect(),
        );
    }
    for of_group in &columns {
        problem.add_row(1.0..=1.0, of_group.iter().map(|&column| (column, 1.0)));
    }
    for (row, &cap) in choice.caps.iter().enumerate() {
        let terms = || {
            choice
                .groups
                .iter()
                .zip(&columns)
                .flat_map(move |(group, columns)| {
                    group
                        .iter()
                        .zip(columns)
                        .map(move |(entry, &column)| (column, choice.weight(entry.key)[row]))
                })
        };
        // In units of the common divisor (the block, as a rule) the coefficients are small whole numbers.
        let unit = terms()
            .fold(0, |unit, (_, weight)| gcd(unit, weight))
            .max(1);
        #[expect(clippy::cast_precision_loss, reason = "token counts stay below 2^53")]
        problem.add_row(
            ..=(cap / unit) as f64,
            terms().map(|(column, weight)| (column, (weight / unit) as f64)),
        );
    }

    let incumbent = start.map(|pick| choice.cost(pick));
    // The gap is relative to the true objective, which HiGHS does not see.
    let target = incumbent.unwrap_or(known_bound).abs() * options.gap * scale;
    let mut model = problem.try_optimise(Sense::Minimise).map_err(refused)?;
    for (option, value) in [
        ("time_limit", watch.left_secs().max(0.1)),
        ("mip_rel_gap", 0.0),
        ("mip_abs_gap", target.max(1e-7)),
    ] {
        set(&mut model, option, value)?;
    }
    // One thread: the same plan on every machine, whatever its cores.
    set(&mut model, "threads", 1)?;
    set(&mut model, "parallel", "off")?;
    set(&mut model, "mip_max_nodes", nodes)?;
    set(
        &mut model,
        "random_seed",
        i32::try_from(options.seed % (1 << 31)).unwrap_or(0),
    )?;
    if let Some(pick) = start {
        let mut values = vec![0.0; columns.iter().map(Vec::len).sum()];
        for (of_group, &entry) in columns.iter().zip(pick) {
            values[of_group[entry].index()] = 1.0;
        }
        model
            .try_set_solution(Some(&values), None, None, None)
            .map_err(refused)?;
    }
    let solved = model.try_solve().map_err(refused)?;

    let status = solved.status();
    tracing::debug!(?status, secs = watch.secs(), "HiGHS stopped");
    let proven = match status {
        HighsModelStatus::Optimal => true,
        HighsModelStatus::ReachedTimeLimit
        | HighsModelStatus::ReachedIterationLimit
        | HighsModelStatus::ReachedSolutionLimit
        | HighsModelStatus::ReachedInterrupt
        | HighsModelStatus::ReachedMemoryLimit => false,
        HighsModelStatus::Infeasible | HighsModelStatus::UnboundedOrInfeasible => {
            return Ok(Closed {
                pick: start.map(<[usize]>::to_vec),
                bound: known_bound,
                infeasible: start.is_none(),
            });
        }
        other => {
            return Err(Error::Highs {
                status: format!("{other:?}"),
            });
        }
    };
    let mut pick = start.map(<[usize]>::to_vec);
    if solved.primal_solution_status() == HighsSolutionStatus::Feasible {
        let values = solved.get_solution();
        let found: Vec<usize> = columns
            .iter()
            .map(|of_group| {
                let value = |entry: &usize| values.columns()[of_group[*entry].index()];
                (0..of_group.len())
                    .max_by(|a, b| value(a).total_cmp(&value(b)))
                    .unwrap_or(0)
            })
            .collect();
        // Feasible within HiGHS's tolerance is not enough: tokens are whole.
        let better = incumbent.is_none_or(|incumbent| choice.cost(&found) < incumbent);
        if better && choice.fits(&choice.used(&found)) {
            pick = Some(found);
        }
    }
    let dual = solved
        .double_info_value(c"mip_dual_bound")
        .unwrap_or(f64::NEG_INFINITY);
    let mut bound = dual / scale + floor;
    if !bound.is_finite() {
        bound = known_bound;
    }
    if let Some(pick) = &pick {
        let cost = choice.cost(pick);
        // Rounding of the scaled numbers is no gap.
        if proven && relative_gap(cost, bound, choice.range()) < 1e-12 {
            bound = cost;
        }
        bound = bound.min(cost);
    }
    Ok(Closed {
        pick,
        bound,
        infeasible: false,
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn refused(status: highs::HighsStatus) -> Error {
    Error::Highs {
        status: format!("{status:?}"),
    }
}

fn set<V: highs::HighsOptionValue>(model: &mut highs::Model, option: &str, value: V) -> Result<()> {
    model
        .try_set_option(option, value)
        .map_err(|error| Error::Highs {
            status: format!("option {option}: {error}"),
        })
}
