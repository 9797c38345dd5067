//! `logits`: what the model thinks at every position, for comparison with other programs.

use anyhow::Context as _;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;

use crate::cli::Logits;
use crate::device::{self, on};
use crate::files::write_atomic;
use crate::ids;
use crate::interrupt;
use crate::plans;
use crate::printer::Printer;
use crate::source::Source;

pub(crate) fn run(args: &Logits, printer: &Printer) -> anyhow::Result<()> {
    let place = device::choose(args.device, printer)?;
    let source = Source::open(&args.model)?;
    let ids = ids::read(&args.ids, source.config())?;
    let plan = match &args.plan {
        Some(wanted) => plans::resolve(&source, Some(wanted))?,
        None => None,
    };
    let context = args
        .context
        .unwrap_or(u32::try_from(ids.len()).unwrap_or(u32::MAX));
    let masks = plans::masks(plan.as_ref(), source.config(), context)?;
    let model = device::load(&place, &source, printer)?;
    let logits = on!(&model, lm => lm.logits(&ids, Some(&masks), interrupt::flag()))
        .context("cannot compute the logits")?;
    let bytes: Vec<u8> = logits
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let vocab = source.config().vocab_size as usize;
    let view = TensorView::new(Dtype::F32, vec![ids.len(), vocab], &bytes)?;
    write_atomic(&args.out, &serialize([("logits", view)], None)?)?;
    let document = json!({"schema_version": 1, "out": args.out, "shape": [ids.len(), vocab], "context": context});
    printer.result(&document, "")?;
    Ok(())
}
