//! `compose`: a text that the dense model writes, to calibrate with.

use serde_json::json;

use crate::cli::Compose;
use crate::files::write_atomic;
use crate::own_text::{self, OwnSpec};
use crate::pipeline;
use crate::printer::Printer;

pub(crate) fn run(args: &Compose, printer: &Printer) -> anyhow::Result<()> {
    let opened = pipeline::open_on(&args.model, args.device, printer)?;
    let spec = OwnSpec {
        tokens: args.tokens,
        temperature: args.temperature,
        seed: args.seed,
    };
    let text = own_text::write(&opened, &spec, printer)?;
    write_atomic(&args.out, text.as_bytes())?;
    printer.result(
        &json!({"schema_version": 1, "out": args.out, "bytes": text.len(), "stages": opened.stages.secs()}),
        format!("{}: {} bytes\n", args.out.display(), text.len()),
    )?;
    Ok(())
}
