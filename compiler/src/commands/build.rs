//! `build`: from a model to a verified bundle, resumable.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use moa_format::{Plan, Provenance};
use serde_json::json;

use crate::bundle::{Bundle, WriteSpec, check_target, write};
use crate::cli::{Build, Effort, QuantChoice, SearchChoice};
use crate::device::Place;
use crate::files::sibling;
use crate::hint::Told;
use crate::interrupt;
use crate::opened::Opened;
use crate::perplexity;
use crate::pipeline;
use crate::plans;
use crate::printer::{Printer, mib};
use crate::search::{self, Job, Searched};

pub(crate) fn run(args: &Build, printer: &Printer) -> anyhow::Result<()> {
    let begun = Instant::now();
    check_target(&args.out)?;
    let work = sibling(&args.out, "moa-work");
    let opened = Opened::open(&args.model, args.profile.device, printer)?;
    let checkpoint = opened.checkpoint()?;
    let context = pipeline::context(args.solve.context, opened.source.config())?;
    let (plans, found) = match &args.plan {
        Some(path) => (vec![plans::read(path, opened.source.config())?], Vec::new()),
        None => {
            let found = find_plans(args, &opened, context, &work, printer)?;
            let plans = found.iter().map(|one| one.plan.clone()).collect();
            (plans, found)
        }
    };
    let plan = plans
        .first()
        .ok_or_else(|| Told::new("--density is empty", "use for example --density 0.5"))?;
    let quant = args
        .quant
        .unwrap_or(if checkpoint.format() == moa_model::SourceFormat::Gguf {
            QuantChoice::Keep
        } else {
            QuantChoice::Q4
        });
    printer.say(format!("writing {}", args.out.display()));
    let tensors = moa_format::tensors(checkpoint.config()).len();
    let bar = printer.bar("quantizing", tensors as u64);
    let spec = WriteSpec {
        name: args.name.as_deref().unwrap_or(checkpoint.name()),
        checkpoint,
        plans: &plans,
        quant,
        provenance: provenance(plan, &opened),
        cancel: interrupt::flag(),
    };
    let written = opened
        .stages
        .time("writing", || write(&args.out, &spec, &mut || bar.inc(1)))?;
    bar.finish_and_clear();
    let bundle = Bundle::open(&args.out)?;
    let bar = printer.bar("verifying", bundle.manifest().file_names().count() as u64);
    opened
        .stages
        .time("verifying", || bundle.verify(|| bar.inc(1)))
        .context("the bundle that was just written does not verify")?;
    bar.finish_and_clear();
    let perplexity = perplexity::compare(&opened, &bundle, written.max_error, printer)?;
    pipeline::clean(&work)?;
    let lengths: Vec<_> = bundle
        .manifest()
        .plans
        .iter()
        .flat_map(|plan| plan.at.iter().map(|at| (plan.name.clone(), *at)))
        .collect();
    let document = json!({
        "schema_version": 1,
        "out": args.out,
        "plan": plan.name,
        "plan_hash": plan.hash(),
        "solve": found.first().map(|one| &one.report),
        "plans": found,
        "weight_bytes": written.weight_bytes,
        "shards": written.shards,
        "max_error": written.max_error,
        "perplexity": perplexity,
        "lengths": lengths
            .iter()
            .filter(|(name, _)| *name == plan.name)
            .map(|(_, at)| at)
            .collect::<Vec<_>>(),
        "stages": opened.stages.secs(),
        "secs": begun.elapsed().as_secs_f64(),
    });
    let mut text = format!(
        "{}: plan {}, {:.1} MiB of weights in {} shards, largest weight error {:.2e}",
        args.out.display(),
        plan.name,
        mib(written.weight_bytes),
        written.shards,
        written.max_error,
    );
    for (name, at) in &lengths {
        text += &format!(
            "\n  {name}, context {:6}: kv_density {:.4}, KV {:.1} MiB against {:.1} MiB dense",
            at.context,
            at.kv_density,
            mib(at.cache_bytes + at.scratch_bytes),
            mib(at.dense_bytes),
        );
    }
    text += &format!("\n{}", perplexity.sentence());
    printer.result(&document, text)?;
    Ok(())
}

fn find_plans(
    args: &Build,
    opened: &Opened,
    context: u32,
    work: &std::path::Path,
    printer: &Printer,
) -> anyhow::Result<Vec<Searched>> {
    let found = search::run(&Job {
        opened,
        profile: &args.profile,
        solve: &args.solve,
        search: &args.search,
        how: args.how.unwrap_or(usual_search(args, opened)),
        context,
        work,
        printer,
    })?;
    for one in &found {
        let report = &one.report;
        printer.say(format!(
            "{} solved in {:.1} s by {}: {}, gap {:.2e}, {} of {} rules in use",
            one.plan_name,
            report.secs,
            report.solver,
            report.status,
            report.gap,
            report.distinct_rules,
            report.candidates
        ));
    }
    Ok(found)
}

/// What the CPU cannot do in an hour is left to those who ask for it.
fn usual_search(args: &Build, opened: &Opened) -> SearchChoice {
    match (&opened.place, args.profile.effort) {
        (Place::Cpu, _) | (_, Effort::Quick) => SearchChoice::OneShot,
        _ => SearchChoice::Steps,
    }
}

fn provenance(plan: &Plan, opened: &Opened) -> Provenance {
    Provenance {
        tool: Some(pipeline::TOOL.into()),
        base_model: Some(opened.name.clone()),
        license: opened.license.clone(),
        source_sha256: Some(opened.source_sha256.clone()),
        notes: BTreeMap::new(),
        ..plan.provenance.clone()
    }
}
