//! `report`: plans, profiles and results as one page.

use serde_json::json;

use crate::cli::Report;
use crate::files::write_atomic;
use crate::hint::Told;
use crate::printer::Printer;
use crate::report::{Inputs, figures, page};

pub(crate) fn run(args: &Report, printer: &Printer) -> anyhow::Result<()> {
    let inputs = Inputs::read(&args.inputs)?;
    let figures = figures(&inputs);
    if figures.is_empty() && inputs.ranked.is_empty() {
        return Err(Told::new(
            "there is nothing to show",
            "pass a plan, a bundle, a profile or results",
        )
        .into());
    }
    let title = args.title.clone().unwrap_or_else(|| {
        inputs.model.as_ref().map_or_else(
            || "MoA report".to_owned(),
            |model| format!("MoA report: {model}"),
        )
    });
    write_atomic(&args.out, page(&inputs, &figures, &title).as_bytes())?;
    if let Some(folder) = &args.figures {
        for figure in &figures {
            let path = folder.join(format!("{}.svg", figure.name));
            write_atomic(&path, figure.svg.as_bytes())?;
        }
    }
    let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
    printer.result(
        &json!({"schema_version": 1, "out": args.out, "figures": names}),
        format!("{}: {} figures", args.out.display(), names.len()),
    )?;
    Ok(())
}
