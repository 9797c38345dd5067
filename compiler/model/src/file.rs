//! Reading a checkpoint's files in bounds: one region by its extent, or a small file as a whole.
//!
//! It deliberately maps nothing into memory (a mapped file that shrinks kills the process) and never reads
//! more than it was asked for, so a checkpoint of any size costs the memory of the tensor in hand.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use crate::{ModelError, Result};

/// JSON and templates of a checkpoint folder: tokenizers of 250,000 words are about 30 MB.
pub(crate) const MAX_TEXT_BYTES: u64 = 256 << 20;

/// An open file with the length it had when it was opened.
#[derive(Debug)]
pub(crate) struct SourceFile {
    path: PathBuf,
    len: u64,
    file: Mutex<File>,
}

impl SourceFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |source| ModelError::io(path, source);
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(ModelError::NotAModel {
                path: path.to_owned(),
                expected: "a regular file",
                found: "something else".into(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            len: meta.len(),
            file: Mutex::new(file),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when the file was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes `[offset, offset + len)`. The caller has checked the extent against [`Self::len`].
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.with(offset, |file| file.read_exact(&mut bytes))?;
        Ok(bytes)
    }

    /// Feeds the whole file to `hash`, a piece at a time.
    pub(crate) fn hash_into(&self, hash: &mut Sha256) -> Result<()> {
        let mut piece = vec![0; 1 << 20];
        self.with(0, |file| {
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(()),
                    n => hash.update(&piece[..n]),
                }
            }
        })
    }

    /// Lends the open file and its length to a parser that seeks for itself.
    pub(crate) fn with_reader<T>(
        &self,
        read: impl FnOnce(&mut File, u64) -> Result<T>,
    ) -> Result<T> {
        let mut file = self
            .file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        read(&mut file, self.len)
    }

    fn with<T>(
        &self,
        offset: u64,
        read: impl FnOnce(&mut File) -> std::io::Result<T>,
    ) -> Result<T> {
        // A reader that panicked leaves only a file position behind, and every read seeks first.
        let mut file = self
            .file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| read(&mut file))
            .map_err(|source| ModelError::io(&self.path, source))
    }
}

/// A whole text file, refused when it is longer than [`MAX_TEXT_BYTES`].
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let file = SourceFile::open(path)?;
    if file.len() > MAX_TEXT_BYTES {
        return Err(ModelError::TooLarge {
            path: path.to_owned(),
            got: file.len(),
            limit: MAX_TEXT_BYTES,
        });
    }
    let mut text = String::new();
    file.with(0, |file| {
        file.take(MAX_TEXT_BYTES).read_to_string(&mut text)
    })?;
    Ok(text)
}

/// A whole JSON file.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value> {
    serde_json::from_str(&read_text(path)?).map_err(|source| ModelError::Json {
        path: path.to_owned(),
        source,
    })
}
