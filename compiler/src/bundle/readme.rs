//! The bundle's README: a model card that says what this is, what it was made from, and what it costs.

use moa_format::Manifest;

use crate::printer::mib;

/// A valid model card: front matter, then prose and the table of plans.
pub(super) fn text(manifest: &Manifest) -> String {
    let provenance = &manifest.provenance;
    let mut text = String::from("---\nlibrary_name: moa\ntags: [moa, webgpu, sparse-attention]\n");
    if let Some(license) = &provenance.license {
        text += &format!("license: {}\n", one_line(license));
    }
    if let Some(base) = &provenance.base_model {
        text += &format!(
            "base_model: {}\n",
            serde_json::to_string(&one_line(base)).unwrap_or_default()
        );
    }
    text += &format!(
        "---\n\n# {}\n\nA MoA bundle: long context in the browser at bounded memory.\n\n",
        one_line(&manifest.name)
    );
    if let Some(hash) = &provenance.source_sha256 {
        text += &format!("Made from a checkpoint with SHA-256 `{hash}`");
        if let Some(tool) = &provenance.tool {
            text += &format!(" by {tool}");
        }
        text += ".\n\n";
    }
    text += "| plan | context | kv_density | attention_density | KV cache | dense |\n|---|---|---|---|---|---|\n";
    for plan in &manifest.plans {
        for at in &plan.at {
            text += &format!(
                "| {} | {} | {:.4} | {:.4} | {:.1} MiB | {:.1} MiB |\n",
                plan.name,
                at.context,
                at.kv_density,
                at.attention_density,
                mib(at.cache_bytes + at.scratch_bytes),
                mib(at.dense_bytes),
            );
        }
    }
    text
}

/// A pointer to the weights' license: its text is the publisher's, not ours.
pub(super) fn license_text(manifest: &Manifest) -> Option<String> {
    let provenance = &manifest.provenance;
    let license = provenance.license.as_ref()?;
    let base = provenance.base_model.as_deref().unwrap_or("the base model");
    Some(format!(
        "The weights in this folder derive from {} and are under its license: {}.\n",
        one_line(base),
        one_line(license)
    ))
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
