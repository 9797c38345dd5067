//! Plans against the best of all assignments, and against each other.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails loudly is what is wanted"
)]

mod cases;

use cases::random_problem;
use moa_mask::{HeadRule, MaskGrid, ModelMasks, density};
use moa_solve::{
    Budget, Error, Infeasible, Options, Outcome, Problem, Solution, Solver, Violation, solve,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LAGRANGE: Options = Options {
    time_limit_secs: 60.0,
    seed: 0,
    gap: 1e-5,
    solver: Solver::Lagrange,
};

fn exact() -> Options {
    Options {
        gap: 0.0,
        ..Options::default()
    }
}

fn solved(problem: &Problem, options: &Options) -> Solution {
    let outcome = solve(problem, options).unwrap();
    let solution = outcome
        .solution()
        .unwrap_or_else(|| panic!("{outcome:?}"))
        .clone();
    problem.verify(&solution.rule_of_head).unwrap();
    assert!(solution.bound <= solution.objective, "{solution:?}");
    assert!(
        solution.gap >= 0.0 && solution.gap.is_finite(),
        "{solution:?}"
    );
    assert_eq!(
        matches!(outcome, Outcome::Optimal(_)),
        solution.gap <= options.gap
    );
    solution
}

/// Tiny problems with costs of both signs, rules that no other dominates, and budgets from loose to tight.
fn tiny(seed: u64, max_rules_per_layer: Option<usize>) -> Problem {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let candidates: Vec<HeadRule> = (0..4)
        .map(|at| HeadRule::Elastic {
            alpha: f64::from(rng.random_range(-4..4) * 4),
            beta: f64::from(at) / 3.0,
        })
        .collect();
    Problem {
        layers: 2,
        kv_heads: 3,
        costs: (0..24).map(|_| rng.random_range(-1.0..1.0)).collect(),
        candidates,
        budgets: vec![
            Budget {
                context: 32,
                kv_density: rng.random_range(0.3..0.9),
            },
            Budget {
                context: 57,
                kv_density: rng.random_range(0.2..0.8),
            },
        ],
        grid: MaskGrid::new(4, 4).unwrap(),
        max_rules_per_layer,
    }
}

/// The cost of the best of all assignments.
fn enumerate(problem: &Problem) -> Option<f64> {
    let (heads, rules) = (problem.heads(), problem.candidates.len());
    let mut best: Option<f64> = None;
    for mut code in 0..rules.pow(u32::try_from(heads).unwrap()) {
        let plan: Vec<usize> = (0..heads)
            .map(|_| {
                let rule = code % rules;
                code /= rules;
                rule
            })
            .collect();
        if problem.verify(&plan).is_ok() {
            let cost = (0..heads)
                .map(|head| problem.costs[head * rules + plan[head]])
                .sum();
            best = Some(best.map_or(cost, |best: f64| best.min(cost)));
        }
    }
    best
}

#[test]
fn tiny_problems_reach_the_optimum_of_all_assignments() {
    let (mut feasible, mut infeasible, mut exact_fallback) = (0, 0, 0);
    for (at, seed) in (0..150).enumerate() {
        let limit = [None, Some(1), Some(2)][at % 3];
        let problem = tiny(seed, limit);
        let best = enumerate(&problem);
        for options in [exact(), LAGRANGE] {
            match solve(&problem, &options) {
                Ok(outcome) => match (outcome.solution(), best) {
                    (None, best) => assert_eq!(best, None, "seed {seed}: {outcome:?}"),
                    (Some(_), None) => panic!("seed {seed}: a plan where there is none"),
                    (Some(solution), Some(best)) => {
                        problem.verify(&solution.rule_of_head).unwrap();
                        assert!(
                            solution.bound <= best + 1e-9,
                            "seed {seed}: {solution:?}, best {best}"
                        );
                        assert!(solution.objective >= best - 1e-9, "seed {seed}");
                        if cfg!(feature = "highs") && options.solver == Solver::Auto {
                            assert!(
                                solution.objective <= best + 1e-9,
                                "seed {seed} {limit:?}: {solution:?}, best {best}"
                            );
                            if limit.is_none() {
                                assert!(solution.gap < 1e-9, "seed {seed}: {solution:?}");
                            }
                        } else {
                            exact_fallback += usize::from(solution.objective <= best + 1e-9);
                        }
                    }
                },
                // The fallback proves infeasibility by its bound or says that it found nothing.
                Err(Error::NoPlanFound { .. }) => assert_eq!(best, None, "seed {seed} {limit:?}"),
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        feasible += usize::from(best.is_some());
        infeasible += usize::from(best.is_none());
    }
    println!("{feasible} feasible, {infeasible} infeasible, fallback exact on {exact_fallback}");
    assert!(feasible > 60 && infeasible >= 5, "both kinds are tried");
    assert!(
        exact_fallback * 10 >= feasible * 7,
        "the fallback finds most optima of tiny problems"
    );
}

#[test]
fn budgets_hold_at_every_length_as_the_mask_counts_them() {
    for kv_density in [0.12, 0.25, 0.3, 0.5, 0.9] {
        let problem = random_problem(6, 3, 40, kv_density, 11);
        for options in [Options::default(), LAGRANGE] {
            let solution = solved(&problem, &options);
            let rules: Vec<Vec<HeadRule>> = solution
                .rule_of_head
                .chunks(3)
                .map(|layer| layer.iter().map(|&rule| problem.candidates[rule]).collect())
                .collect();
            for budget in &problem.budgets {
                let masks = ModelMasks::from_rules(&rules, budget.context, problem.grid).unwrap();
                let kept = density::kv_density(masks.iter(), budget.context);
                assert!(kept <= kv_density + 1e-9, "{kept} at N={}", budget.context);
                assert!(
                    kept > 0.8 * kv_density,
                    "the budget is used: {kept} of {kv_density}"
                );
            }
        }
    }
}

#[test]
fn the_fallback_is_close_to_highs_and_its_bound_holds() {
    let problem = random_problem(8, 4, 30, 0.4, 3);
    let fallback = solved(&problem, &LAGRANGE);
    let best = solved(&problem, &exact());
    println!("fallback {fallback:?}\nauto {best:?}");
    assert_eq!(fallback.solver, "lagrange");
    // 32 heads are few: a plan cannot mix rules finely. At 1,024 heads the gap is below 0.001 (see the bench).
    assert!(fallback.objective <= best.objective * 1.005);
    assert!(
        fallback.bound <= best.objective * (1.0 + 1e-9),
        "the bound is one"
    );
    assert!(fallback.gap < 0.01, "{}", fallback.gap);
    if cfg!(feature = "highs") {
        assert_eq!(best.solver, "highs");
        assert!(best.gap < 1e-9);
    }
}

#[test]
fn a_limit_per_layer_is_kept_and_costs_little() {
    let mut problem = random_problem(6, 5, 30, 0.4, 4);
    let free = solved(&problem, &exact());
    let mut previous = f64::INFINITY;
    for limit in [1, 2, 3, 4] {
        problem.max_rules_per_layer = Some(limit);
        for options in [Options::default(), LAGRANGE] {
            let solution = solved(&problem, &options);
            assert!(
                solution.objective >= free.objective * (1.0 - 1e-9),
                "K={limit}"
            );
            assert!(solution.gap < 0.05, "K={limit}: {solution:?}");
            if options.solver == Solver::Auto {
                println!(
                    "K={limit}: {} ({:.4}), {:.2} s",
                    solution.objective, solution.gap, solution.secs
                );
                assert!(
                    solution.objective <= previous * 1.01,
                    "a wider limit is no worse"
                );
                previous = solution.objective;
            }
        }
    }
    problem.max_rules_per_layer = Some(5);
    assert_eq!(
        solved(&problem, &exact()).objective,
        free.objective,
        "5 heads need no more than 5 rules"
    );
}

#[test]
fn infeasible_names_the_budget_that_binds() {
    let mut problem = random_problem(4, 2, 20, 0.5, 5);
    problem.budgets.push(Budget {
        context: 1024,
        kv_density: 0.12,
    });
    for max_rules_per_layer in [None, Some(1)] {
        problem.max_rules_per_layer = max_rules_per_layer;
        let Outcome::Infeasible { reason } = solve(&problem, &Options::default()).unwrap() else {
            panic!("128 of 1024 tokens are more than 0.12");
        };
        assert_eq!(
            reason,
            Infeasible::Budget {
                context: 1024,
                bound: 0.12,
                least_density: 0.125,
                least_span: 128
            }
        );
        assert_eq!(
            reason.to_string(),
            "the budget at N=1024 allows kv_density 0.12, but the smallest spans on offer (128 tokens) already keep 0.1250"
        );
    }
    problem.budgets.last_mut().unwrap().kv_density = 0.125;
    problem.max_rules_per_layer = None;
    let solution = solved(&problem, &Options::default());
    assert!(
        solution
            .rule_of_head
            .iter()
            .all(|&rule| problem.candidates[rule].span(1024, problem.grid) == 128),
        "a budget that only the smallest spans meet is met"
    );
}

#[test]
fn budgets_that_exclude_each_other_are_infeasible_together() {
    // Exact spans against elastic ones: each budget can be met by one of the rules, both by none.
    let problem = Problem {
        layers: 1,
        kv_heads: 2,
        candidates: vec![
            HeadRule::Exact { span: 24 },
            HeadRule::Elastic {
                alpha: -8.0,
                beta: 0.5,
            },
        ],
        costs: vec![0.0; 4],
        budgets: vec![
            Budget {
                context: 24,
                kv_density: 0.5,
            },
            Budget {
                context: 400,
                kv_density: 0.1,
            },
        ],
        grid: MaskGrid::new(4, 4).unwrap(),
        max_rules_per_layer: None,
    };
    for options in [Options::default(), LAGRANGE] {
        match solve(&problem, &options) {
            Ok(Outcome::Infeasible {
                reason: Infeasible::Together { contexts },
            }) => {
                assert_eq!(contexts, [24, 400]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_same_problem_gives_the_same_plan() {
    for limit in [None, Some(2)] {
        let mut problem = random_problem(10, 4, 40, 0.35, 8);
        problem.max_rules_per_layer = limit;
        for options in [Options::default(), LAGRANGE] {
            let first = solved(&problem, &options);
            for _ in 0..2 {
                let again = solved(&problem, &options);
                assert_eq!(first.rule_of_head, again.rule_of_head);
                assert_eq!(
                    (first.objective, first.bound),
                    (again.objective, again.bound)
                );
            }
        }
    }
}

#[test]
fn a_time_limit_returns_the_plan_so_far() {
    let problem = random_problem(16, 8, 60, 0.3, 9);
    let options = Options {
        time_limit_secs: 1e-3,
        gap: 0.0,
        ..Options::default()
    };
    let solution = solved(&problem, &options);
    assert!(solution.gap.is_finite());
    println!("after {:.3} s: gap {:.5}", solution.secs, solution.gap);
}

#[test]
fn the_checker_sees_one_token_too_many() {
    let problem = Problem {
        layers: 2,
        kv_heads: 1,
        candidates: vec![
            HeadRule::Exact { span: 10 },
            HeadRule::Exact { span: 11 },
            HeadRule::Exact { span: 90 },
        ],
        costs: vec![2.0, 1.0, 0.0, 2.0, 1.0, 0.0],
        budgets: vec![Budget {
            context: 100,
            kv_density: 0.105,
        }],
        grid: MaskGrid::new(4, 4).unwrap(),
        max_rules_per_layer: Some(1),
    };
    assert_eq!(problem.verify(&[0, 1]), Ok(()));
    assert_eq!(
        problem.verify(&[1, 1]),
        Err(Violation::Budget {
            context: 100,
            got: 0.11,
            bound: 0.105
        })
    );
    assert!(matches!(
        problem.verify(&[0]),
        Err(Violation::Shape {
            got: 1,
            expected: 2,
            ..
        })
    ));
    assert!(matches!(
        problem.verify(&[0, 3]),
        Err(Violation::Shape { .. })
    ));
    assert_eq!(solved(&problem, &exact()).objective, 3.0);

    let mut one_layer = problem.clone();
    (one_layer.layers, one_layer.kv_heads) = (1, 2);
    assert_eq!(
        one_layer.verify(&[0, 1]),
        Err(Violation::Rules {
            layer: 0,
            got: 2,
            limit: 1
        })
    );
    assert_eq!(
        solved(&one_layer, &exact()).objective,
        4.0,
        "two rules would cost 3"
    );
}

#[test]
fn without_budgets_every_head_takes_its_cheapest_rule() {
    let mut problem = random_problem(3, 2, 20, 0.5, 6);
    problem.budgets.clear();
    let solution = solved(&problem, &exact());
    let cheapest: f64 = problem
        .costs
        .chunks(problem.candidates.len())
        .map(|costs| costs.iter().copied().fold(f64::INFINITY, f64::min))
        .sum();
    assert!((solution.objective - cheapest).abs() <= cheapest.abs() * 1e-12);
    assert_eq!(solution.gap, 0.0);
}

#[test]
fn malformed_problems_are_named() {
    let good = random_problem(2, 2, 10, 0.5, 7);
    let check = |change: &dyn Fn(&mut Problem), expected: &str| {
        let mut problem = good.clone();
        change(&mut problem);
        assert_eq!(
            solve(&problem, &Options::default())
                .unwrap_err()
                .to_string(),
            expected
        );
    };
    check(&|problem| problem.layers = 0, "the problem has no layers");
    check(
        &|problem| problem.candidates.clear(),
        "the problem has no candidates",
    );
    check(
        &|problem| problem.layers = usize::MAX,
        "cost table holds 40 numbers, expected 18446744073709551615",
    );
    check(
        &|problem| {
            problem.costs.pop();
        },
        "cost table holds 39 numbers, expected 40",
    );
    check(
        &|problem| problem.costs[13] = f64::NAN,
        "cost of head 1 candidate 3 is NaN, expected a finite number",
    );
    check(
        &|problem| problem.budgets[0].kv_density = -0.5,
        "kv_density budget at N=2048 is -0.5, expected a finite number above 0",
    );
    check(
        &|problem| problem.budgets[0].context = 0,
        "context of a budget is 0, expected at least 1 token",
    );
    check(
        &|problem| problem.max_rules_per_layer = Some(0),
        "rules per layer is 0, expected at least 1",
    );
    check(
        &|problem| problem.candidates[2] = HeadRule::Exact { span: 64 },
        "candidate 2",
    );
    let options = Options {
        time_limit_secs: f64::NAN,
        ..Options::default()
    };
    assert!(solve(&good, &options).is_err());
}
