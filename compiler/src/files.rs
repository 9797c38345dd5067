//! Files written whole or not at all: to a temporary sibling, then renamed.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of a plain text, at most: no text that is calibrated or evaluated on comes near this.
pub(crate) const TEXT_LIMIT: u64 = 256 << 20;

/// A file or folder could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(crate) struct FileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl FileError {
    pub(crate) fn new(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self {
            action,
            path: path.into(),
            source,
        }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        use std::io::ErrorKind;
        match self.source.kind() {
            ErrorKind::NotFound => Some(format!(
                "check the path: {} does not exist",
                self.path.display()
            )),
            ErrorKind::PermissionDenied => Some("check the permissions".into()),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(
                "free some space, or write to another disk; nothing half-written was left".into(),
            ),
            _ => None,
        }
    }
}

/// The folder that a path lies in, `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A hidden sibling of `path`: same folder, so that renaming is atomic.
pub(crate) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path
        .file_name()
        .map_or_else(|| "out".into(), |name| name.to_string_lossy());
    parent(path).join(format!(".{name}.{suffix}"))
}

/// Writes `bytes` to `path`, creating its folder; on failure nothing is left.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let folder = parent(path);
    std::fs::create_dir_all(folder).map_err(|source| FileError::new("create", folder, source))?;
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_data()?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(permissions)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| FileError::new("write", path, source))
}

/// Reads a file of at most `limit` bytes; `-` is standard input.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    use std::io::Read as _;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            std::io::stdin()
                .lock()
                .take(limit + 1)
                .read_to_end(&mut bytes)?;
        } else {
            std::fs::File::open(path)?
                .take(limit + 1)
                .read_to_end(&mut bytes)?;
        }
        if bytes.len() as u64 > limit {
            return Err(std::io::Error::other(format!(
                "larger than {limit} bytes, which no such file is"
            )));
        }
        Ok(bytes)
    };
    read().map_err(|source| FileError::new("read", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("taken");
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("x"), b"x").unwrap();
        assert!(write_atomic(&target, b"new").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(target.join("x").exists());
    }

    #[test]
    fn reads_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomic(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(read_bounded(&path, 4).is_err());
    }
}
