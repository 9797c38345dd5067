//! Writing a bundle: into a temporary sibling of the target, which takes the target's place when it is whole.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use moa_format::{
    FileEntry, MANIFEST_FILE, Manifest, Plan, Provenance, ShardBuilder, TokenizerFiles, plan_entry,
    tensors,
};
use moa_model::Checkpoint;

use super::quantize::quantize;
use super::readme;
use crate::cli::QuantChoice;
use crate::files::{FileError, parent, sibling};
use crate::hint::Told;

/// What goes into a bundle.
pub(crate) struct WriteSpec<'a> {
    /// The model's name, for people.
    pub(crate) name: &'a str,
    pub(crate) checkpoint: &'a Checkpoint,
    /// The first is the default.
    pub(crate) plans: &'a [Plan],
    pub(crate) quant: QuantChoice,
    pub(crate) provenance: Provenance,
    pub(crate) cancel: &'a AtomicBool,
}

/// What was written.
#[derive(Debug)]
pub(crate) struct WriteReport {
    pub(crate) weight_bytes: u64,
    pub(crate) max_error: f32,
    pub(crate) shards: usize,
}

/// Refuses a target that is in the way before any work is done.
pub(crate) fn check_target(out: &Path) -> anyhow::Result<()> {
    if !out.exists() {
        return Ok(());
    }
    let is_bundle = out.join(MANIFEST_FILE).is_file();
    let is_empty = out
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_none());
    if is_bundle || is_empty {
        Ok(())
    } else {
        Err(Told::new(
            format!("{} exists and is no bundle", out.display()),
            "name a new folder, an empty one, or a bundle to replace",
        )
        .into())
    }
}

/// Writes the bundle to `out`; calls `step` after each tensor.
pub(crate) fn write(
    out: &Path,
    spec: &WriteSpec<'_>,
    step: &mut dyn FnMut(),
) -> anyhow::Result<WriteReport> {
    check_target(out)?;
    let folder = parent(out);
    std::fs::create_dir_all(folder).map_err(|source| FileError::new("create", folder, source))?;
    let temporary = tempfile::Builder::new()
        .prefix(".moa-bundle-")
        .tempdir_in(folder)
        .map_err(|source| FileError::new("write into", folder, source))?;
    let report = fill(temporary.path(), spec, step)?;
    replace(temporary, out)?;
    Ok(report)
}

fn fill(
    folder: &Path,
    spec: &WriteSpec<'_>,
    step: &mut dyn FnMut(),
) -> anyhow::Result<WriteReport> {
    let config = spec.checkpoint.config();
    let mut files = Vec::new();
    let mut tokenizer = None;
    if let Some(chat) = spec.checkpoint.tokenizer() {
        let names = TokenizerFiles {
            tokenizer: "tokenizer.json".into(),
            config: "tokenizer_config.json".into(),
        };
        for (name, text) in [
            (&names.tokenizer, chat.tokenizer_json()),
            (&names.config, chat.tokenizer_config_json()),
        ] {
            put(folder, name, text.as_bytes())?;
            files.push(FileEntry::of(name, text.as_bytes()));
        }
        tokenizer = Some(names);
    }
    let mut entries = Vec::new();
    for plan in spec.plans {
        let (entry, bytes) = plan_entry(plan, config)?;
        put(folder, &entry.file, &bytes)?;
        entries.push(entry);
    }
    let mut builder = ShardBuilder::new();
    let mut max_error: f32 = 0.0;
    for tensor in tensors(config) {
        if spec.cancel.load(Ordering::Relaxed) {
            return Err(Told::new("interrupted", "run the same command again").into());
        }
        let source = spec.checkpoint.tensor(&tensor.name)?;
        let stored = quantize(spec.quant, &tensor, &source)?;
        builder.begin_tensor(&tensor, stored.dtype, source.source_type().name())?;
        for piece in &stored.pieces {
            max_error = max_error.max(piece.max_error);
            if let Some(shard) = builder.push_piece(piece)? {
                put(folder, &shard.entry.file, &shard.data)?;
            }
        }
        step();
    }
    let (last, weights) = builder.finish()?;
    if let Some(shard) = last {
        put(folder, &shard.entry.file, &shard.data)?;
    }
    let default_plan = entries
        .first()
        .map(|plan| plan.name.clone())
        .unwrap_or_default();
    let mut manifest = Manifest {
        name: spec.name.to_owned(),
        model: config.clone(),
        tokenizer,
        default_plan,
        plans: entries,
        weights,
        files,
        provenance: spec.provenance.clone(),
    };
    let text = readme::text(&manifest);
    put(folder, "README.md", text.as_bytes())?;
    manifest
        .files
        .push(FileEntry::of("README.md", text.as_bytes()));
    if let Some(license) = readme::license_text(&manifest) {
        put(folder, "LICENSE", license.as_bytes())?;
        manifest
            .files
            .push(FileEntry::of("LICENSE", license.as_bytes()));
    }
    // Last: a folder without a manifest is no bundle.
    put(folder, MANIFEST_FILE, manifest.to_json()?.as_bytes())?;
    Ok(WriteReport {
        weight_bytes: manifest.weight_bytes(),
        max_error,
        shards: manifest.weights.shards.len(),
    })
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), FileError> {
    let path = folder.join(name);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_data()
    };
    write().map_err(|source| FileError::new("write", &path, source))
}

/// Puts the finished folder in the target's place. An older bundle there goes only after the new one stands.
fn replace(temporary: tempfile::TempDir, out: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(temporary.path(), permissions)
        .map_err(|source| FileError::new("write", out, source))?;
    let old = sibling(out, "moa-old");
    let had_old = out.exists();
    if had_old {
        if old.exists() {
            std::fs::remove_dir_all(&old)
                .map_err(|source| FileError::new("remove", &old, source))?;
        }
        std::fs::rename(out, &old).map_err(|source| FileError::new("replace", out, source))?;
    }
    if let Err(source) = std::fs::rename(temporary.path(), out) {
        if had_old {
            // Best effort: the message below is what matters.
            let _ = std::fs::rename(&old, out);
        }
        return Err(FileError::new("write", out, source).into());
    }
    // The folder has moved: there is nothing left for the guard to remove.
    let _ = temporary.keep();
    if had_old {
        std::fs::remove_dir_all(&old).map_err(|source| FileError::new("remove", &old, source))?;
    }
    Ok(())
}
