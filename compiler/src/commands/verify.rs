//! `verify`: every byte and every number of a bundle.

use anyhow::Context as _;
use serde_json::json;

use crate::bundle::Bundle;
use crate::cli::Verify;
use crate::hint::Told;
use crate::printer::Printer;

pub(crate) fn run(args: &Verify, printer: &Printer) -> anyhow::Result<()> {
    let damaged = || {
        Told::new(
            format!("{} is not a sound bundle", args.bundle.display()),
            "fetch or build the bundle again",
        )
    };
    let bundle = Bundle::open(&args.bundle).with_context(damaged)?;
    let manifest = bundle.manifest();
    let bar = printer.bar("verifying", manifest.file_names().count() as u64);
    bundle.verify(|| bar.inc(1)).with_context(damaged)?;
    bar.finish_and_clear();
    let document = json!({
        "schema_version": 1,
        "ok": true,
        "name": manifest.name,
        "files": manifest.file_names().count() + 1,
        "tensors": manifest.weights.tensors.len(),
        "weight_bytes": manifest.weight_bytes(),
        "plans": bundle.plan_names(),
    });
    printer.result(
        &document,
        format!(
            "{}: sound; {} files, {} tensors, plans {}",
            manifest.name,
            manifest.file_names().count() + 1,
            manifest.weights.tensors.len(),
            bundle.plan_names().join(", ")
        ),
    )?;
    Ok(())
}
