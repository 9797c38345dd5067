//! `study`: how well each estimator predicted the order of random plans.

use std::fmt::Write as _;

use serde_json::json;

use crate::cli::Study;
use crate::evaluate::scorer_of;
use crate::hint::Told;
use crate::interrupt;
use crate::opened::Opened;
use crate::printer::Printer;
use crate::profile::Curves;
use crate::search::{StudySpec, is_group, study};

pub(crate) fn run(args: &Study, printer: &Printer) -> anyhow::Result<()> {
    if !(args.density > 0.0 && args.density < 1.0) || args.plans < 3 || args.samples == 0 {
        return Err(Told::new(
            "there is nothing to study",
            "use a --density between 0 and 1, at least 3 plans and 1 sample",
        )
        .into());
    }
    let curves = Curves::from_file(&args.curves, || {
        Told::new(
            format!("cannot study {}", args.curves.display()),
            "pass a file that `moa-compile profile` wrote",
        )
    })?;
    let opened = Opened::open(&args.model, args.device, printer)?;
    if !curves.fits(opened.source.config()) {
        return Err(Told::new("the profile is another model's", "profile this model").into());
    }
    let scorer = scorer_of(opened.lm(printer)?, &opened.source, interrupt::flag());
    let spec = StudySpec {
        density: args.density,
        plans: args.plans,
        calibration: args.calibration.as_deref(),
        samples: args.samples,
        seed: args.seed,
        trials_out: args.trials_out.as_deref(),
    };
    let (drawn, ranked) = study(&opened, &curves, &*scorer, &spec, printer)?;
    let mut text = String::from(
        "| estimator | monotone | of | Spearman [95%] | Kendall |\n|---|---|---|---|---|\n",
    );
    for one in ranked.iter().filter(|one| is_group(&one.of)) {
        let interval = one.interval.map_or_else(String::new, |interval| {
            format!(" [{:.3}, {:.3}]", interval.low, interval.high)
        });
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.3}{interval} | {:.3} |",
            one.estimator,
            if one.monotone { "yes" } else { "no" },
            one.of,
            one.spearman,
            one.kendall
        );
    }
    printer.result(
        &json!({
            "schema_version": 1,
            "device": scorer.device(),
            "density": args.density,
            "seed": args.seed,
            "ranked": ranked,
            "plans": drawn,
        }),
        text,
    )?;
    Ok(())
}
