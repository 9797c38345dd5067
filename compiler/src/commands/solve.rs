//! `solve`: a plan from a profile.

use std::path::Path;

use serde_json::json;

use crate::cli::Solve;
use crate::files::write_atomic;
use crate::hint::Told;
use crate::pipeline::{DEFAULT_CONTEXT, solve_spec};
use crate::printer::Printer;
use crate::profile::{Curves, solve};

pub(crate) fn run(args: &Solve, printer: &Printer) -> anyhow::Result<()> {
    let curves = Curves::from_file(&args.profile, || {
        Told::new(
            format!("cannot solve {}", args.profile.display()),
            "pass a file that `moa-compile profile` wrote",
        )
    })?;
    let longest = curves.lengths.keys().next_back().copied().unwrap_or(1024);
    let [density] = args.solve.density[..] else {
        return Err(Told::new(
            "--density has several values",
            "`solve` writes one plan; `build` takes several densities",
        )
        .into());
    };
    let context = args.solve.context.unwrap_or(longest.max(DEFAULT_CONTEXT));
    let spec = solve_spec(&args.solve, density, context, args.seed);
    let (plan, report) = solve(&curves, &spec)?;
    let text = plan.to_json()?;
    printer.say(format!(
        "{}: objective {:.6}, gap {:.2e}, {} candidates, {} in use, {:.1} s by {}",
        report.status,
        report.objective,
        report.gap,
        report.candidates,
        report.distinct_rules,
        report.secs,
        report.solver
    ));
    let to_stdout = args.out == Path::new("-");
    if !to_stdout {
        write_atomic(&args.out, text.as_bytes())?;
    }
    let document = json!({
        "schema_version": 1,
        "plan": serde_json::from_str::<serde_json::Value>(&text)?,
        "plan_sha256": plan.hash(),
        "report": report,
    });
    printer.result(&document, if to_stdout { text.as_str() } else { "" })?;
    Ok(())
}
