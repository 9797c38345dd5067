//! The real binary, driven as a user drives it: exit code first, then what was said and what was left on disk.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod bad_luck;
mod build;
mod damage;
mod eval;
mod usage;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A model of three layers and no tokenizer.
pub(crate) fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama")
}

/// The binary, with nothing of the caller's environment that changes what it says.
pub(crate) fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moa-compile"));
    command
        .args(args)
        .env_remove("MOA_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

pub(crate) fn moa(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    command(args).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts success and returns standard output.
pub(crate) fn ok(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

/// Asserts exit 1, one error sentence, a hint, no panic; returns standard error.
pub(crate) fn refused(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("error: "))
            .count(),
        1,
        "{text}"
    );
    assert!(
        text.lines().any(|line| line.starts_with("hint: ")),
        "no hint in: {text}"
    );
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Calibration of token ids alone: `count` records of `len` ids from a seed.
pub(crate) fn write_ids_calibration(path: &Path, count: u64, len: u64, seed: u64) {
    let mut text = String::new();
    for record in 0..count {
        let mut state = seed
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(record + 1);
        let ids: Vec<u64> = (0..len)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % 320
            })
            .collect();
        text += &format!("{{\"ids\": {ids:?}, \"response_start\": {}}}\n", len - 24);
    }
    std::fs::write(path, text).unwrap();
}
