//! `inspect`: what a model, bundle, plan or profile holds, without running it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use moa_format::{MANIFEST_FILE, Manifest, ModelConfig, Plan, tensors};
use moa_model::Checkpoint;
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::cli::Inspect;
use crate::files::read_bounded;
use crate::hint::Told;
use crate::printer::{Printer, mib};
use crate::profile::Curves;

const FILE_LIMIT: u64 = 4 << 30;

pub(crate) fn run(args: &Inspect, printer: &Printer) -> anyhow::Result<()> {
    let path = &args.path;
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_lowercase());
    let (document, text) = if path.join(MANIFEST_FILE).is_file() {
        bundle(&Bundle::open(path)?, args.tensors)
    } else if extension.as_deref() == Some("json") && path.is_file() {
        plan(path)?
    } else if extension.as_deref() == Some("safetensors") && path.is_file() {
        profile(path)?
    } else {
        checkpoint(&Checkpoint::open(path)?, args.tensors)?
    };
    printer.result(&document, text)?;
    Ok(())
}

fn model_text(config: &ModelConfig) -> String {
    format!(
        "{:?}: {} layers, {} heads on {} kv heads of {}, hidden {}, ffn {}, vocabulary {}, context {}, {}",
        config.family,
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.hidden_dim,
        config.ffn_dim,
        config.vocab_size,
        config.max_context,
        if config.tied_embeddings {
            "tied head"
        } else {
            "untied head"
        },
    )
}

fn bundle(bundle: &Bundle, list_tensors: bool) -> (Value, String) {
    let manifest: &Manifest = bundle.manifest();
    let plans: Vec<Value> = manifest
        .plans
        .iter()
        .map(|plan| {
            let lengths: Vec<Value> = plan
                .at
                .iter()
                .map(|at| {
                    json!({
                        "context": at.context,
                        "kv_density": at.kv_density,
                        "attention_density": at.attention_density,
                        "kv_bytes": at.cache_bytes + at.scratch_bytes,
                        "cache_bytes": at.cache_bytes,
                        "scratch_bytes": at.scratch_bytes,
                        "dense_bytes": at.dense_bytes,
                    })
                })
                .collect();
            json!({"name": plan.name, "file": plan.file, "sha256": plan.sha256, "hash": plan.hash, "lengths": lengths})
        })
        .collect();
    let stored: Vec<Value> = manifest
        .weights
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "rows": tensor.rows,
                "cols": tensor.cols,
                "source_type": tensor.source_dtype,
                "stored_type": tensor.dtype,
                "max_error": tensor.max_error,
                "bytes": tensor.bytes(),
            })
        })
        .collect();
    let mut text = format!(
        "bundle {}\n{}\n",
        manifest.name,
        model_text(&manifest.model)
    );
    let _ = writeln!(
        text,
        "weights: {:.1} MiB in {} shards",
        mib(manifest.weight_bytes()),
        manifest.weights.shards.len()
    );
    let mut kinds: Vec<(String, u64, f32)> = Vec::new();
    for tensor in &manifest.weights.tensors {
        let kind = format!("{} from {}", tensor.dtype.name(), tensor.source_dtype);
        match kinds.iter_mut().find(|(name, _, _)| *name == kind) {
            Some((_, count, error)) => {
                *count += 1;
                *error = error.max(tensor.max_error);
            }
            None => kinds.push((kind, 1, tensor.max_error)),
        }
    }
    for (kind, count, error) in kinds {
        let _ = writeln!(
            text,
            "  {count:4} tensors {kind}, largest error {error:.3e}"
        );
    }
    for plan in &manifest.plans {
        let default = if plan.name == manifest.default_plan {
            " (default)"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "plan {}{default}\n   context  kv_density  attention_density       KV bytes    dense bytes",
            plan.name
        );
        for at in &plan.at {
            let _ = writeln!(
                text,
                "{:10} {:11.4} {:18.4} {:14} {:14}",
                at.context,
                at.kv_density,
                at.attention_density,
                at.cache_bytes + at.scratch_bytes,
                at.dense_bytes
            );
        }
    }
    if list_tensors {
        for tensor in &manifest.weights.tensors {
            let _ = writeln!(
                text,
                "{:48} {:>6}x{:<6} {:4} from {:5} error {:.3e}",
                tensor.name,
                tensor.rows,
                tensor.cols,
                tensor.dtype.name(),
                tensor.source_dtype,
                tensor.max_error
            );
        }
    }
    let document = json!({
        "schema_version": 1,
        "kind": "bundle",
        "name": manifest.name,
        "model": manifest.model,
        "has_tokenizer": manifest.tokenizer.is_some(),
        "default_plan": manifest.default_plan,
        "plans": plans,
        "weight_bytes": manifest.weight_bytes(),
        "tensors": stored,
        "provenance": manifest.provenance,
    });
    (document, text)
}

fn checkpoint(checkpoint: &Checkpoint, list_tensors: bool) -> anyhow::Result<(Value, String)> {
    let config = checkpoint.config();
    let mut stored = Vec::new();
    let mut text = format!("model {}\n{}\n", checkpoint.name(), model_text(config));
    let mut kinds: Vec<(&'static str, u64)> = Vec::new();
    for spec in tensors(config) {
        let source = checkpoint.source_type(&spec.name)?.name();
        stored.push(
            json!({"name": spec.name, "rows": spec.rows, "cols": spec.cols, "source_type": source}),
        );
        match kinds.iter_mut().find(|(name, _)| *name == source) {
            Some((_, count)) => *count += 1,
            None => kinds.push((source, 1)),
        }
        if list_tensors {
            let _ = writeln!(
                text,
                "{:48} {:>6}x{:<6} {source}",
                spec.name, spec.rows, spec.cols
            );
        }
    }
    for (kind, count) in kinds {
        let _ = writeln!(text, "  {count:4} tensors {kind}");
    }
    let tokenizer = checkpoint.tokenizer();
    let _ = writeln!(
        text,
        "tokenizer: {}",
        match tokenizer {
            None => "none; token ids only",
            Some(tokenizer) if tokenizer.has_chat_template() => "with a chat template",
            Some(_) => "without a chat template",
        }
    );
    let dense: Vec<Value> = config
        .report_lengths()
        .into_iter()
        .map(|context| json!({"context": context, "dense_bytes": config.kv_shape().dense_bytes(context, moa_format::KV_VALUE_BYTES)}))
        .collect();
    let document = json!({
        "schema_version": 1,
        "kind": "model",
        "name": checkpoint.name(),
        "model": config,
        "has_tokenizer": tokenizer.is_some(),
        "has_chat_template": tokenizer.is_some_and(moa_model::ChatTokenizer::has_chat_template),
        "license": checkpoint.license(),
        "tensors": stored,
        "lengths": dense,
    });
    Ok((document, text))
}

fn plan(path: &Path) -> anyhow::Result<(Value, String)> {
    let no_plan = || {
        Told::new(
            format!("{} is no plan of ours", path.display()),
            "a plan of another program is imported by `build --plan` or `generate --plan`",
        )
    };
    let bytes = read_bounded(path, FILE_LIMIT)?;
    let plan =
        Plan::from_json(&String::from_utf8(bytes).with_context(no_plan)?).with_context(no_plan)?;
    let mut lengths = Vec::new();
    let mut text = format!(
        "plan {}: {} layers of {} kv heads, sink {}, block {}\n   context  kv_density  attention_density\n",
        plan.name,
        plan.rules.len(),
        plan.rules.first().map_or(0, Vec::len),
        plan.sink,
        plan.block
    );
    for context in [1024, 2048, 4096, 8192, 16384, 32768] {
        let masks = plan.masks(context)?;
        let kv = moa_mask::density::kv_density(masks.iter(), context);
        let attention = moa_mask::density::attention_density(masks.iter(), context);
        let _ = writeln!(text, "{context:10} {kv:11.4} {attention:18.4}");
        lengths.push(json!({"context": context, "kv_density": kv, "attention_density": attention}));
    }
    let document = json!({
        "schema_version": 1,
        "kind": "plan",
        "plan": serde_json::from_str::<Value>(&plan.to_json()?)?,
        "hash": plan.hash(),
        "lengths": lengths,
    });
    Ok((document, text))
}

fn profile(path: &Path) -> anyhow::Result<(Value, String)> {
    let curves = Curves::from_file(path, || {
        Told::new(
            format!("{} is no profile", path.display()),
            "pass a model's folder, not one of its files",
        )
    })?;
    let mut text = format!(
        "profile: {} layers of {} kv heads, sink {}, block {}\n",
        curves.layers,
        curves.kv_heads,
        curves.grid.sink(),
        curves.grid.block()
    );
    let mut lengths = Vec::new();
    for (context, length) in &curves.lengths {
        for (kind, samples) in length
            .kinds
            .iter()
            .map(|(kind, curves)| (kind, curves.samples))
        {
            let _ = writeln!(text, "{context:10} {samples:4} samples of {kind}");
            lengths.push(json!({"context": context, "kind": kind, "samples": samples}));
        }
    }
    let document = json!({"schema_version": 1, "kind": "profile", "lengths": lengths, "metadata": curves.metadata});
    Ok((document, text))
}
