//! The browser bench: our engine and others' side by side in headless Chromium. What is measured is `web/bench`'s business.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use xshell::cmd;

use crate::setup::{self, Purpose};
use crate::test::DEMO_BUNDLE;
use crate::workspace::{Profile, Workspace};
use crate::{demo, graphics, wasm, web};

/// What the software GPU gets done: a prompt of 4,096 tokens would take it minutes, for each engine and repetition.
const SOFTWARE: &[&str] = &["--prompt", "512", "--depths", "0,2048"];

/// Options of `cargo xtask bench-web`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Results: samples.json and index.html
    #[arg(long, default_value = "target/bench-web-results")]
    out: PathBuf,
    /// A browser with a GPU of its own, instead of the software one
    #[arg(long, value_name = "FILE")]
    chromium: Option<PathBuf>,
    /// Leave out attention's own time, which moa-run measures on native wgpu before the browser starts
    #[arg(long)]
    no_native: bool,
    /// Options of web/bench/run.mjs: `-- --help` lists them
    #[arg(last = true)]
    more: Vec<String>,
}

/// Prepares the engines and the weights, and runs the bench.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::run(workspace, Purpose::Test)?;
    let sh = &workspace.shell;
    {
        // The other engines are installed here alone: nobody else needs half a gigabyte of them.
        let _dir = sh.push_dir(workspace.root.join("web/bench"));
        cmd!(sh, "npm ci --ignore-scripts").run()?;
    }
    if workspace
        .root
        .join(DEMO_BUNDLE)
        .join("manifest.json")
        .is_file()
    {
        wasm::build(workspace)?;
        web::build(workspace, "target/web".as_ref())?;
    } else {
        demo::run(workspace, &demo::Options::for_tests(DEMO_BUNDLE))?;
    }
    let native = if options.no_native {
        None
    } else {
        // Kernels are timed by the device: how the host is compiled is all the same.
        let binaries = workspace.build_binaries(Profile::Dev, &["moa-run"])?;
        Some(binaries.join("moa-run"))
    };
    let gpu = graphics::ensure(workspace)?;
    let _env = match &options.chromium {
        Some(chromium) => vec![sh.push_env("MOA_CHROMIUM", chromium)],
        None => vec![
            sh.push_env("MOA_CHROMIUM", &gpu.chromium),
            sh.push_env("LVP_SO", &gpu.driver),
            // The same driver for what runs outside of the browser.
            sh.push_env("VK_ICD_FILENAMES", &gpu.icd),
        ],
    };
    // What is given after these takes their place.
    let mut settings = Vec::new();
    if options.chromium.is_none() {
        eprintln!(
            "the software GPU: {} instead of the whole protocol, unless told otherwise",
            SOFTWARE.join(" ")
        );
        settings.extend(SOFTWARE.iter().map(OsString::from));
    }
    if let Some(program) = native {
        settings.extend(["--moa-run".into(), program.into_os_string()]);
    }
    let (model, out, more) = (workspace.model(), &options.out, &options.more);
    cmd!(
        sh,
        "node web/bench/run.mjs --bundle {DEMO_BUNDLE} --gguf {model} --out {out} {settings...} {more...}"
    )
    .run()?;
    Ok(())
}
