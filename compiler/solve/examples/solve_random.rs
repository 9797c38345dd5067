//! Times the solvers on a problem of the size of a 7B model: `cargo run -p moa-solve --example solve_random [layers kv_heads rules]`.

#[path = "../tests/cases/mod.rs"]
mod cases;

use moa_solve::{Error, Options, Solver, solve};

#[expect(clippy::print_stdout, reason = "the result of a bench")]
fn main() -> Result<(), Error> {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let [layers, kv_heads, rules] = sizes.try_into().unwrap_or([32, 32, 60]);
    for limit in [None, Some(2), Some(3)] {
        for solver in [Solver::Lagrange, Solver::Auto] {
            let mut problem = cases::random_problem(layers, kv_heads, rules, 0.5, 1);
            problem.max_rules_per_layer = limit;
            let options = Options {
                solver,
                gap: 1e-6,
                ..Options::default()
            };
            let outcome = solve(&problem, &options)?;
            if let Some(plan) = outcome.solution() {
                println!(
                    "{layers} x {kv_heads} heads, {} rules, limit {limit:?}: {} found {:.6e} with gap {:.5}% in {:.2} s",
                    problem.candidates.len(),
                    plan.solver,
                    plan.objective,
                    plan.gap * 100.0,
                    plan.secs
                );
            }
        }
    }
    Ok(())
}
