//! `cargo xtask gpu-pack`: tests, benches and `moa-compile` in one folder, for a host with a GPU and no Rust.
//!
//! The folder is `gpu-pack/`, which git ignores; programs lie in it compressed, since all of them together are more than what such folders may
//! be where they are carried. `gpu-pack/run.sh` on the other host unpacks them, runs every test and prints one line for each. It deliberately
//! copies no model: tests that need one are left out there, and said to be, unless `MOA_SMOLLM2_GGUF` names it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xshell::cmd;

use crate::workspace::{Workspace, on_path};

/// What fits where such folders are carried.
const LIMIT_BYTES: u64 = 64 << 20;

const RUN: &str = r#"#!/bin/sh
# Unpacks this folder's programs, runs every test, one at a time, and prints one line for each; whole logs go to logs/. Exit code 1 if anything
# failed. `./run.sh unpack` only unpacks.
cd "$(dirname "$0")" || exit 1
tar xJf programs.tar.xz || exit 1
[ "$1" = unpack ] && exit 0
MOA_FIXTURES="$PWD/fixtures"
: "${MOA_SMOLLM2_GGUF:=$PWD/SmolLM2-135M-Instruct.Q4_1.gguf}"
export MOA_FIXTURES MOA_SMOLLM2_GGUF
skip=""
if [ ! -f "$MOA_SMOLLM2_GGUF" ]; then
    echo "left out: tests of SmolLM2, whose weights are not at $MOA_SMOLLM2_GGUF"
    skip="--skip smollm2"
fi
mkdir -p logs
failed=0
for test in tests/*; do
    name=$(basename "$test")
    "$test" --test-threads=1 --nocapture $skip >"logs/$name.log" 2>&1 || failed=1
    line=$(grep -a "^test result" "logs/$name.log" | tail -1)
    echo "$name: ${line:-did not finish}"
    grep -a "panicked at" -A 2 "logs/$name.log" | head -20
done
exit $failed
"#;

/// Builds everything and gathers it.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    for tool in ["strip", "tar", "xz"] {
        ensure!(on_path(tool), "{tool} is not on PATH");
    }
    let pack = workspace.root.join("gpu-pack");
    let programs = workspace.root.join("target/gpu-pack");
    let (test_folder, bin_folder) = (programs.join("tests"), programs.join("bin"));
    for folder in [&test_folder, &bin_folder, &pack.join("fixtures")] {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
    }
    let packages = [
        "-p",
        "moa-kernels",
        "-p",
        "moa-cuda",
        "-p",
        "moa-cuda-engine",
    ];
    let mut tests = build(
        workspace,
        &["test", "--no-run", "--lib", "--tests"],
        &packages,
    )?;
    // Its command line's tests find the binary by its path, and need no device.
    tests.extend(build(
        workspace,
        &["test", "--no-run", "--lib"],
        &["-p", "moa-compile"],
    )?);
    for (name, file) in &tests {
        put(workspace, file, &test_folder.join(name))?;
    }
    let mut benches = build(workspace, &["build", "--examples"], &packages)?;
    benches.extend(build(
        workspace,
        &["build", "--bin", "moa-compile"],
        &["-p", "moa-compile"],
    )?);
    for (name, file) in &benches {
        put(workspace, file, &bin_folder.join(name))?;
    }
    ensure!(
        !tests.is_empty() && benches.len() >= 3,
        "cargo built less than expected: {tests:?} {benches:?}"
    );
    fixtures(workspace, &pack.join("fixtures"))?;
    let script = pack.join("run.sh");
    std::fs::write(&script, RUN)?;
    cmd!(workspace.shell, "chmod +x {script}").quiet().run()?;
    let archive = pack.join("programs.tar.xz");
    cmd!(
        workspace.shell,
        "tar --create --xz --file {archive} --directory {programs} tests bin"
    )
    .quiet()
    .run()?;
    // What this made; logs and models that lie beside it are their owner's business.
    let made = bytes_of(&pack.join("fixtures"))?;
    let bytes = made + archive.metadata()?.len() + script.metadata()?.len();
    println!(
        "gpu-pack: {} tests, {} programs, {:.1} MiB",
        tests.len(),
        benches.len(),
        bytes as f64 / f64::from(1 << 20)
    );
    ensure!(
        bytes <= LIMIT_BYTES,
        "gpu-pack has {bytes} bytes, more than {LIMIT_BYTES}"
    );
    Ok(())
}

/// Runs cargo for a host with a GPU, and says what executables came out: a name and where each lies.
fn build(
    workspace: &Workspace,
    what: &[&str],
    packages: &[&str],
) -> Result<Vec<(String, PathBuf)>> {
    let cargo = &workspace.cargo;
    let messages = cmd!(
        workspace.shell,
        "{cargo} {what...} {packages...} --locked --message-format=json-render-diagnostics"
    )
    .env("MOA_TEST_CUDA", "yes")
    .read()?;
    let mut found = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo's messages")?;
        let Some(file) = message["executable"].as_str() else {
            continue;
        };
        let target = &message["target"];
        let name = target["name"].as_str().context("a target has no name")?;
        let manifest = message["manifest_path"].as_str().unwrap_or_default();
        let package = Path::new(manifest)
            .parent()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let name = match target["kind"][0].as_str() {
            Some("lib") => format!("{package}-unit"),
            Some("test") => format!("{package}-{name}"),
            _ => name.to_owned(),
        };
        found.push((name, PathBuf::from(file)));
    }
    Ok(found)
}

/// Copies an executable without what debuggers want.
fn put(workspace: &Workspace, from: &Path, to: &Path) -> Result<()> {
    cmd!(workspace.shell, "strip -s -o {to} {from}")
        .quiet()
        .run()
        .with_context(|| format!("{}", from.display()))?;
    Ok(())
}

/// The tiny checkpoints and their vectors.
fn fixtures(workspace: &Workspace, to: &Path) -> Result<()> {
    let from = workspace.root.join("tests/fixtures");
    for entry in std::fs::read_dir(&from)? {
        let folder = entry?.path();
        let Some(name) = folder.file_name().filter(|_| folder.is_dir()) else {
            continue;
        };
        let to = to.join(name);
        std::fs::create_dir_all(&to)?;
        for file in std::fs::read_dir(&folder)? {
            let file = file?.path();
            let Some(name) = file.file_name().filter(|_| file.is_file()) else {
                bail!("{} holds more than files", folder.display());
            };
            std::fs::copy(&file, to.join(name))?;
        }
    }
    Ok(())
}

/// Bytes of all files below `folder`.
fn bytes_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += if kind.is_dir() {
            bytes_of(&entry.path())?
        } else {
            kind.len()
        };
    }
    Ok(bytes)
}
