//! Files of one JSON value a line that grow while work goes on, so that an interrupted run finds what it had.
//!
//! A run that was killed may have left half a line: it is cut off when the file is opened again. What lines mean, and
//! whether one that cannot be read matters, is the caller's business.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::files::{FileError, parent, read_bounded};

/// A file that lines are appended to.
#[derive(Debug)]
pub(crate) struct Journal(File);

impl Journal {
    /// Opens a file of at most `limit` bytes, or begins one, and gives the whole lines that it holds.
    pub(crate) fn open(path: &Path, limit: u64) -> Result<(Self, Vec<u8>), FileError> {
        let mut lines = Vec::new();
        if path.exists() {
            lines = read_bounded(path, limit)?;
            let whole = lines.iter().rposition(|byte| *byte == b'\n');
            lines.truncate(whole.map_or(0, |at| at + 1));
        }
        let folder = parent(path);
        std::fs::create_dir_all(folder)
            .map_err(|source| FileError::new("create", folder, source))?;
        let open = || -> std::io::Result<File> {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)?;
            file.set_len(lines.len() as u64)?;
            Ok(file)
        };
        let file = open().map_err(|source| FileError::new("write", path, source))?;
        Ok((Self(file), lines))
    }

    /// Appends a value.
    pub(crate) fn push(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_goes_and_whole_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/a.jsonl");
        let (mut journal, lines) = Journal::open(&path, 100).unwrap();
        assert!(lines.is_empty());
        journal.push(&1).unwrap();
        drop(journal);
        std::fs::write(&path, b"1\n{\"key\": \"x").unwrap();
        let (mut journal, lines) = Journal::open(&path, 100).unwrap();
        assert_eq!(lines, b"1\n");
        journal.push(&2).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n");
        assert!(Journal::open(&path, 3).is_err());
    }
}
