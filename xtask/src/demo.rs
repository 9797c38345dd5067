//! The demo: compile a small model on this machine, verify the bundle and serve the pages.
//!
//! The output folder is the bundle itself with the pages in its subfolder `web`: any static host can serve it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::setup::{self, Purpose};
use crate::workspace::{Profile, Workspace};
use crate::{wasm, web};

/// What the pages call the model; its file names a step of its training.
const MODEL_NAME: &str = "SmolLM2-135M-Instruct";

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Stop when everything is built; serve nothing
    #[arg(long)]
    no_serve: bool,
    /// The bundle's folder; a bundle that is already there is kept if it verifies
    #[arg(long, default_value = "demo")]
    out: PathBuf,
    /// Port on localhost
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Mean share of the keys that a head keeps; several, separated by commas, give several plans to choose from
    #[arg(
        long,
        value_name = "FRACTION,..",
        value_delimiter = ',',
        default_value = "0.5,0.25"
    )]
    density: Vec<f64>,
    /// Declared context length in tokens
    #[arg(long, default_value_t = 8192)]
    context: u32,
    /// Cargo profile of the compiler
    #[arg(long, value_enum, default_value = "release", hide = true)]
    profile: Profile,
}

impl Options {
    /// A demo that serves nothing, by the compiler that the tests have built anyway, for a context that takes
    /// less time to profile.
    pub(crate) fn for_tests(out: &str) -> Self {
        Self {
            no_serve: true,
            out: out.into(),
            port: 0,
            density: vec![0.5, 0.25],
            context: 2048,
            profile: Profile::Dev,
        }
    }
}

/// Runs the demo.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::run(workspace, Purpose::Demo)?;
    let out = workspace.root.join(&options.out);
    let binaries = workspace.build_binaries(options.profile, &["moa-compile"])?;
    bundle(workspace, &binaries.join("moa-compile"), &out, options)?;
    wasm::build(workspace)?;
    web::build(workspace, &out.join("web"))?;
    println!(
        "the bundle is in {}, the pages in its folder web",
        out.display()
    );
    if options.no_serve {
        return Ok(());
    }
    let sh = &workspace.shell;
    let port = options.port.to_string();
    cmd!(sh, "node web/serve.mjs {out} --port {port}")
        .quiet()
        .run()?;
    Ok(())
}

/// Compiles the model into `out`, unless a bundle that verifies is there.
fn bundle(workspace: &Workspace, compiler: &Path, out: &Path, options: &Options) -> Result<()> {
    let sh = &workspace.shell;
    if out.join("manifest.json").is_file()
        && cmd!(sh, "{compiler} verify {out}")
            .ignore_stdout()
            .run()
            .is_ok()
    {
        println!(
            "the bundle in {} is kept as it is; for other densities or another context choose another folder",
            out.display()
        );
        return Ok(());
    }
    ensure!(
        !out.exists() || out.join("manifest.json").is_file() || fs::read_dir(out)?.next().is_none(),
        "{} holds something else than a bundle; choose another folder",
        out.display()
    );
    if out.exists() {
        fs::remove_dir_all(out)?;
    }
    let model = workspace.model();
    let density = options
        .density
        .iter()
        .map(f64::to_string)
        .collect::<Vec<_>>()
        .join(",");
    let context = options.context.to_string();
    cmd!(
        sh,
        "{compiler} build {model} --out {out} --name {MODEL_NAME} --effort quick --density {density} --context {context}"
    )
    .run()?;
    cmd!(sh, "{compiler} verify {out}").run()?;
    Ok(())
}
