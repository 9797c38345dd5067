//! Token ids from a file: a JSON array, checked against the vocabulary.

use std::path::Path;

use moa_format::ModelConfig;

use crate::files::read_bounded;
use crate::hint::Told;

const IDS_LIMIT: u64 = 256 << 20;

/// Reads a JSON array of token ids; `-` is standard input.
pub(crate) fn read(path: &Path, config: &ModelConfig) -> anyhow::Result<Vec<u32>> {
    let bytes = read_bounded(path, IDS_LIMIT)?;
    let hint = "--ids takes a file with a JSON array of token ids, such as [1, 15, 42]";
    let ids: Vec<u32> = serde_json::from_slice(&bytes).map_err(|error| {
        anyhow::Error::new(error).context(Told::new(
            format!("{} holds no token ids", path.display()),
            hint,
        ))
    })?;
    check(&ids, config)?;
    Ok(ids)
}

/// Refuses an empty list and ids that the model does not have.
pub(crate) fn check(ids: &[u32], config: &ModelConfig) -> anyhow::Result<()> {
    if ids.is_empty() {
        return Err(Told::new("there are no tokens", "pass at least one token").into());
    }
    match ids.iter().position(|&id| id >= config.vocab_size) {
        Some(place) => Err(Told::new(
            format!(
                "token {} at place {place} is not in the vocabulary of {}",
                ids[place], config.vocab_size
            ),
            "these ids belong to another model",
        )
        .into()),
        None => Ok(()),
    }
}
