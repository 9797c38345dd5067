//! HiGHS must not write to stdout: `--json` promises exactly one document there.

mod cases;

use std::process::Command;

use moa_solve::{Options, solve};

const CHILD: &str = "MOA_SOLVE_SILENT_CHILD";

#[test]
fn solving_prints_nothing() {
    if std::env::var_os(CHILD).is_some() {
        for limit in [None, Some(2)] {
            let mut problem = cases::random_problem(6, 4, 30, 0.4, 1);
            problem.max_rules_per_layer = limit;
            let options = Options {
                gap: 0.0,
                ..Options::default()
            };
            assert!(solve(&problem, &options).unwrap().solution().is_some());
        }
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "solving_prints_nothing",
            "--nocapture",
            "--quiet",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stray: Vec<&str> = stdout
        .lines()
        .filter(|line| {
            let harness = ["running 1 test", "test result: ok", "."];
            !line.is_empty() && !harness.iter().any(|own| line.starts_with(own))
        })
        .collect();
    assert_eq!(stray, Vec::<&str>::new());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
