//! `profile`: influence curves of a model.

use serde_json::json;

use crate::cli::Profile;
use crate::files::{sibling, write_atomic};
use crate::opened::Opened;
use crate::pipeline::{self, Wanted};
use crate::printer::Printer;

pub(crate) fn run(args: &Profile, printer: &Printer) -> anyhow::Result<()> {
    let work = sibling(&args.out, "moa-work");
    let opened = Opened::open(&args.model, args.profile.device, printer)?;
    let context = opened.source.config().max_context;
    // A profile is kept for whichever estimator is asked of it later.
    let wanted = Wanted {
        per_entry: true,
        blocks: args.blocks,
    };
    let mut curves = pipeline::profile(&opened, &args.profile, context, wanted, &work, printer)?;
    let estimator = moa_lm::Estimator::from(args.estimator);
    curves
        .metadata
        .insert("estimator".into(), estimator.name().into());
    write_atomic(&args.out, &curves.to_bytes()?)?;
    pipeline::clean(&work)?;
    let lengths: Vec<u32> = curves.lengths.keys().copied().collect();
    let document = json!({
        "schema_version": 1,
        "out": args.out,
        "lengths": lengths,
        "layers": curves.layers,
        "kv_heads": curves.kv_heads,
        "metadata": curves.metadata,
    });
    printer.result(&document, "")?;
    Ok(())
}
