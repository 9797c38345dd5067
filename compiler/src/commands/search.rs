//! `search`: a plan found by measuring plans, without building a bundle.

use serde_json::json;

use crate::cli::Search;
use crate::files::{FileError, sibling, write_atomic};
use crate::opened::Opened;
use crate::pipeline;
use crate::printer::Printer;
use crate::search::{self, Job, Searched};

pub(crate) fn run(args: &Search, printer: &Printer) -> anyhow::Result<()> {
    let work = sibling(&args.out, "moa-work");
    let opened = Opened::open(&args.model, args.profile.device, printer)?;
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
    let several = found.len() > 1;
    let path_of = |one: &Searched| {
        if several {
            args.out.join(format!("{}.json", one.plan_name))
        } else {
            args.out.clone()
        }
    };
    if several {
        std::fs::create_dir_all(&args.out)
            .map_err(|source| FileError::new("create", &args.out, source))?;
    }
    for one in &found {
        write_atomic(&path_of(one), one.plan.to_json()?.as_bytes())?;
    }
    if !args.keep_work {
        pipeline::clean(&work)?;
    }
    let mut text = String::new();
    for one in &found {
        text += &format!(
            "{}: {} at kv_density {}, {} plans measured\n",
            path_of(one).display(),
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
        &json!({"schema_version": 1, "out": args.out, "context": context, "stages": opened.stages.secs(), "plans": found}),
        text,
    )?;
    Ok(())
}
