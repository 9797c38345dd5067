//! The npm package, the pages and the bench: types, unit tests, bundling.
//!
//! Expects the wasm engine in place (see `wasm`) and the npm packages installed.

use std::path::Path;

use anyhow::Result;
use xshell::cmd;

use crate::workspace::Workspace;

/// Compiles the package and writes the pages to `out`.
pub(crate) fn build(workspace: &Workspace, out: &Path) -> Result<()> {
    let sh = &workspace.shell;
    let out = workspace.root.join(out);
    cmd!(sh, "npm run --silent --workspace moa-runtime build").run()?;
    cmd!(sh, "npm run --silent build:pages -- --outDir {out}").run()?;
    Ok(())
}

/// Type checks, unit tests, the API's reference, and what others would get of the package; needs the package compiled.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let sh = &workspace.shell;
    cmd!(
        sh,
        "npm run --silent --workspaces --include-workspace-root typecheck"
    )
    .run()?;
    cmd!(sh, "npm run --silent --workspace moa-runtime test").run()?;
    // The bench's parts that need no browser, and none of the engines that only a bench installs.
    cmd!(sh, "npm run --silent --prefix web/bench test").run()?;
    cmd!(sh, "npm run --silent --workspace moa-runtime docs").run()?;
    cmd!(sh, "npm run --silent --workspace moa-runtime check-package").run()?;
    Ok(())
}
