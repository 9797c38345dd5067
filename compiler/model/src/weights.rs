//! Where a checkpoint's weights lie, and reading them one tensor at a time.
//!
//! Both importers end here: a list of files and, for every tensor of the model, a checked extent in one of
//! them. It deliberately keeps nothing in memory between two calls.

use std::collections::BTreeMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::file::SourceFile;
use crate::{ModelError, Result, SourceTensor, SourceType};

/// A tensor's checked extent.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    /// Index among the files.
    pub(crate) file: usize,
    /// First byte from the beginning of the file.
    pub(crate) offset: u64,
    /// Length, which is that of `shape` in `source_type`.
    pub(crate) bytes: u64,
    pub(crate) shape: [usize; 2],
    pub(crate) source_type: SourceType,
    /// Heads whose rows the file interleaves.
    pub(crate) interleaved_heads: Option<usize>,
}

/// The weights of a checkpoint.
#[derive(Debug)]
pub(crate) struct Weights {
    files: Vec<SourceFile>,
    tensors: BTreeMap<String, Located>,
}

impl Weights {
    pub(crate) fn new(files: Vec<SourceFile>, tensors: BTreeMap<String, Located>) -> Self {
        Self { files, tensors }
    }

    pub(crate) fn located(&self, name: &str) -> Result<&Located> {
        self.tensors
            .get(name)
            .ok_or_else(|| ModelError::UnknownTensor {
                name: name.to_owned(),
            })
    }

    pub(crate) fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Rows `rows` of a tensor, or all of them.
    pub(crate) fn read(&self, name: &str, rows: Option<Range<usize>>) -> Result<SourceTensor> {
        let place = self.located(name)?;
        let [all_rows, cols] = place.shape;
        let rows = rows.unwrap_or(0..all_rows);
        if rows.start > rows.end || rows.end > all_rows {
            return Err(ModelError::RowsOutOfRange {
                name: name.to_owned(),
                first: rows.start,
                end: rows.end,
                rows: all_rows,
            });
        }
        let row_bytes = cols / place.source_type.block_weights() * place.source_type.block_bytes();
        debug_assert_eq!(
            place.bytes,
            (all_rows * row_bytes) as u64,
            "extents were checked when the file was opened"
        );
        let file = &self.files[place.file];
        let bytes = match place.interleaved_heads {
            None => file.read(
                place.offset + (rows.start * row_bytes) as u64,
                rows.len() * row_bytes,
            )?,
            Some(heads) => {
                let stored = file.read(place.offset, all_rows * row_bytes)?;
                let head_dim = all_rows / heads;
                let mut bytes = Vec::with_capacity(rows.len() * row_bytes);
                for row in rows.clone() {
                    let from = interleaved_row(row, head_dim) * row_bytes;
                    bytes.extend_from_slice(&stored[from..from + row_bytes]);
                }
                bytes
            }
        };
        Ok(SourceTensor {
            name: name.to_owned(),
            shape: [rows.len(), cols],
            source_type: place.source_type,
            bytes,
        })
    }

    /// SHA-256 of each file, with its name: one entry for a GGUF file.
    pub(crate) fn hashes(&self) -> Result<Vec<(String, [u8; 32])>> {
        self.files
            .iter()
            .map(|file| {
                let mut hash = Sha256::new();
                file.hash_into(&mut hash)?;
                let name = file
                    .path()
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                Ok((name, hash.finalize().into()))
            })
            .collect()
    }
}

/// Where a llama-architecture GGUF keeps row `row` of Q or K: row `half * head_dim/2 + pair` of a head in
/// Hugging Face's order is row `2 * pair + half` of that head there.
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, channel) = (row / head_dim, row % head_dim);
    let (half, pair) = (channel / (head_dim / 2), channel % (head_dim / 2));
    head * head_dim + 2 * pair + half
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp's converter: `w.reshape(heads, 2, head_dim/2, cols).swapaxes(1, 2)`.
    #[test]
    fn rows_are_where_the_converter_put_them() {
        let (heads, head_dim) = (3, 8);
        let mut converted = Vec::new();
        for head in 0..heads {
            for pair in 0..head_dim / 2 {
                for half in 0..2 {
                    converted.push(head * head_dim + half * head_dim / 2 + pair);
                }
            }
        }
        for row in 0..heads * head_dim {
            assert_eq!(converted[interleaved_row(row, head_dim)], row);
        }
    }
}
