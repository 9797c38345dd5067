//! `moa-run random`: a well-known shape with random weights as a bundle in a folder, for benches of what loads bundles, a
//! browser for one. It has no tokenizer: prompts are ids.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use moa_format::MANIFEST_FILE;
use moa_runtime_web::EngineError;
use moa_runtime_web::bundle::BundleError;
use serde_json::json;

use super::CliError;
use super::shapes::Shape;

/// Arguments of `random`.
#[derive(Debug, Args)]
pub(super) struct RandomArgs {
    /// The shape.
    #[arg(long, value_name = "NAME")]
    shape: Shape,
    /// kv_density of its plan.
    #[arg(long, value_name = "PART", default_value_t = 1.0)]
    density: f64,
    /// Folder to write; there must be none yet, or an empty one.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One JSON document on stdout instead of a line.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn random(args: &RandomArgs) -> Result<String, CliError> {
    let manifest_error = |source| EngineError::Manifest { source };
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| BundleError::File { path, source }
    };
    fs::create_dir_all(&args.out).map_err(failed(&args.out))?;
    let mut entries = fs::read_dir(&args.out).map_err(failed(&args.out))?;
    if entries.next().is_some() {
        let source =
            std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the folder is not empty");
        return Err(failed(&args.out)(source).into());
    }
    let (manifest, plan, shards) = args.shape.bundle(args.density).map_err(manifest_error)?;
    let plan_bytes = plan.to_bin().map_err(manifest_error)?;
    let json = manifest.to_json().map_err(manifest_error)?;
    let named = manifest.weights.shards.iter().map(|shard| &shard.file);
    let plans = manifest.plans.iter().map(|entry| &entry.file);
    // Without its manifest, which comes last and in one piece, a folder is no bundle.
    let partial = format!("{MANIFEST_FILE}.partial");
    for (name, bytes) in named
        .zip(shards.iter().map(Vec::as_slice))
        .chain(plans.zip([plan_bytes.as_slice()]))
        .chain([(&partial, json.as_bytes())])
    {
        let path = args.out.join(name);
        fs::write(&path, bytes).map_err(failed(&path))?;
    }
    let path = args.out.join(MANIFEST_FILE);
    fs::rename(args.out.join(partial), &path).map_err(failed(&path))?;
    let bytes: usize = shards.iter().map(Vec::len).sum();
    Ok(if args.json {
        json!({ "schema": 1, "folder": args.out, "plan": plan.name, "weightBytes": bytes })
            .to_string()
    } else {
        format!(
            "{}: plan {}, {bytes} bytes of weights",
            args.out.display(),
            plan.name
        )
    })
}
