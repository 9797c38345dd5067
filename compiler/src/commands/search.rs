//! `search`: a plan found by measuring plans, without building a bundle.

use serde_json::json;

use crate::cli::Search;
use crate::files::{sibling, write_atomic};
use crate::hint::Told;
use crate::pipeline;
use crate::printer::Printer;
use crate::search::{self, Job};

pub(crate) fn run(args: &Search, printer: &Printer) -> anyhow::Result<()> {
    if args.solve.density.len() > 1 {
        return Err(Told::new(
            "--density has several values",
            "`search` writes one plan; `build` takes several densities",
        )
        .into());
    }
    let work = sibling(&args.out, "moa-work");
    let opened = pipeline::open(&args.model, &args.profile, printer)?;
    let context = pipeline::context(args.solve.context, opened.source.config())?;
    let found = search::run(&Job {
        opened: &opened,
        profile: &args.profile,
        solve: &args.solve,
        search: &args.search,
        how: args.how,
        context,
        work: &work,
        printer,
    })?;
    for one in &found {
        write_atomic(&args.out, one.plan.to_json()?.as_bytes())?;
    }
    if !args.keep_work {
        pipeline::clean(&work)?;
    }
    let mut text = String::new();
    for one in &found {
        text += &format!(
            "{}: {} at kv_density {}, {} plans measured\n",
            args.out.display(),
            one.plan_name,
            one.density,
            one.steps.len()
        );
        if let Some(measured) = &one.measured {
            let number =
                |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
            text += &format!(
                "  held out: task {} nats, text {} nats\n",
                number(measured.task),
                number(measured.text)
            );
        }
    }
    printer.result(
        &json!({"schema_version": 1, "out": args.out, "context": context, "plans": found}),
        text,
    )?;
    Ok(())
}
