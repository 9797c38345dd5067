//! The wasm modules: compile, bind, shrink, and hold their sizes below the numbers in the repository.
//!
//! The result lies in `web/moa-runtime/wasm`, in the layout of `wasm-pack build --target web`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use xshell::cmd;

use crate::workspace::Workspace;

const CRATE: &str = "moa-runtime-web";
const MODULE: &str = "moa_runtime_web";
/// The module for `response_format`, which only pages that ask for JSON load.
const GRAMMAR: &str = "moa_grammar";
pub(crate) const GRAMMAR_MANIFEST: &str = "web/grammar/Cargo.toml";
const TARGET: &str = "wasm32-unknown-unknown";

/// What wasm-opt may assume of browsers. Never `--all-features`: browsers refuse the result.
const WASM_OPT_FLAGS: &[&str] = &[
    "-Oz",
    // Passes until nothing gets smaller: a kilobyte of the engine, packed.
    "--converge",
    "--enable-bulk-memory",
    "--enable-nontrapping-float-to-int",
    "--enable-sign-ext",
    "--enable-mutable-globals",
    "--enable-multivalue",
    "--enable-reference-types",
    "--enable-simd",
];

/// Builds the engine, and what `response_format` needs beside it, into the npm package.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let sh = &workspace.shell;
    let cargo = &workspace.cargo;
    let out = workspace.root.join("web/moa-runtime/wasm");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    cmd!(
        sh,
        "{cargo} build --locked --package {CRATE} --lib --target {TARGET} --profile wasm"
    )
    .run()?;
    bind(workspace, &workspace.target(), MODULE)?;
    let target = grammar_target(workspace);
    cmd!(
        sh,
        "{cargo} build --locked --manifest-path {GRAMMAR_MANIFEST} --target-dir {target} --target {TARGET} --profile wasm"
    )
    .run()?;
    bind(workspace, &target, GRAMMAR)
}

/// Cargo's output folder for the grammar, which is outside of the workspace for its features: they are kept apart.
pub(crate) fn grammar_target(workspace: &Workspace) -> PathBuf {
    workspace.target().join("grammar")
}

/// Writes a module's glue and the module itself, shrunk.
fn bind(workspace: &Workspace, target: &Path, name: &str) -> Result<()> {
    let sh = &workspace.shell;
    let cargo = &workspace.cargo;
    let module = target
        .join(TARGET)
        .join("wasm")
        .join(format!("{name}.wasm"));
    let out = workspace.root.join("web/moa-runtime/wasm");
    cmd!(
        sh,
        "{cargo} run --quiet --locked --package xtask --features bindgen --bin bind-wasm -- {module} {out}"
    )
    .run()?;
    // Debian's wasm-opt (108) makes a module that is broken without an error: only npm's pinned one is used.
    let wasm_opt = workspace.root.join("node_modules/binaryen/bin/wasm-opt");
    let bound = out.join(format!("{name}_bg.wasm"));
    cmd!(sh, "node {wasm_opt} {bound} {WASM_OPT_FLAGS...} -o {bound}").run()?;
    Ok(())
}

/// Prints raw, gzip and brotli bytes of what a page loads, and fails above the limit.
pub(crate) fn check_size(workspace: &Workspace) -> Result<()> {
    let sh = &workspace.shell;
    cmd!(sh, "node web/moa-runtime/scripts/size.mjs").run()?;
    Ok(())
}
