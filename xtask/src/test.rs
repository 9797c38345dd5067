//! What CI runs: every check of the repository as a list of steps, in an order in which the cheap ones fail first.
//!
//! A step that cannot run is a failure, never a pass: `setup` brings what the machine lacks.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use xshell::cmd;

use crate::graphics::{self, Graphics};
use crate::setup::{self, Purpose};
use crate::wasm::{self, GRAMMAR_MANIFEST, grammar_target};
use crate::workspace::{Profile, Workspace};
use crate::{demo, web};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only these steps
    #[arg(
        long,
        value_name = "STEP",
        value_delimiter = ',',
        conflicts_with = "skip"
    )]
    only: Vec<String>,
    /// Run all steps but these
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    skip: Vec<String>,
    /// Name the steps and stop
    #[arg(long)]
    list: bool,
}

/// The demo's bundle as the tests make it.
pub(crate) const DEMO_BUNDLE: &str = "target/demo";

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn(&Workspace) -> Result<()>,
}

const STEPS: &[Step] = &[
    step(
        "setup",
        "system packages, npm packages, model, software GPU",
        |ws| setup::run(ws, Purpose::Test),
    ),
    step("fmt", "formatting", fmt),
    step("clippy", "lints, native and wasm", clippy),
    step("test", "all Rust tests", rust_tests),
    step("tint", "every shader through Tint", tint),
    step("wasm", "the wasm engine and its size", |ws| {
        wasm::build(ws)?;
        wasm::check_size(ws)
    }),
    step(
        "npm",
        "the npm package: types, unit tests, contents",
        |ws| {
            web::build(ws, "target/web".as_ref())?;
            web::check(ws)
        },
    ),
    step("demo", "the demo, up to serving it", |ws| {
        demo::run(ws, &demo::Options::for_tests(DEMO_BUNDLE))
    }),
    step("e2e", "the demo's model in headless Chromium", e2e),
];

const fn step(name: &'static str, what: &'static str, run: fn(&Workspace) -> Result<()>) -> Step {
    Step { name, what, run }
}

/// Runs the chosen steps and stops at the first failure.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    for name in options.only.iter().chain(&options.skip) {
        ensure!(
            STEPS.iter().any(|step| step.name == name),
            "no step is called `{name}`; the steps are {}",
            STEPS
                .iter()
                .map(|step| step.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    if options.list {
        for step in STEPS {
            println!("{:8} {}", step.name, step.what);
        }
        return Ok(());
    }
    let chosen = |step: &&Step| match (options.only.as_slice(), options.skip.as_slice()) {
        ([], skip) => !skip.iter().any(|name| name == step.name),
        (only, _) => only.iter().any(|name| name == step.name),
    };

    // One environment for all steps: build scripts that read it then run once.
    let gpu = Graphics::of(workspace);
    let sh = &workspace.shell;
    let _env = [
        sh.push_env("MOA_TEST_WGPU", "yes"),
        sh.push_env("VK_ICD_FILENAMES", &gpu.icd),
        sh.push_env("MOA_SMOLLM2_GGUF", workspace.model()),
        // Compiled pipelines are kept between runs.
        sh.push_env(
            "MESA_SHADER_CACHE_DIR",
            workspace.tools().join("shader-cache"),
        ),
    ];

    let mut done: Vec<(&str, Duration)> = Vec::new();
    for step in STEPS.iter().filter(chosen) {
        println!("\n==== {}: {}", step.name, step.what);
        let start = Instant::now();
        let result = (step.run)(workspace);
        done.push((step.name, start.elapsed()));
        if let Err(error) = result {
            summary(&done);
            println!("steps: {} passed, 1 failed", done.len() - 1);
            return Err(error.context(format!("step `{}` failed", step.name)));
        }
    }
    summary(&done);
    println!("steps: {} passed, 0 failed", done.len());
    Ok(())
}

fn summary(done: &[(&str, Duration)]) {
    println!();
    for (name, took) in done {
        println!("{name:8} {:7.1} s", took.as_secs_f64());
    }
}

fn fmt(workspace: &Workspace) -> Result<()> {
    let (sh, cargo) = (&workspace.shell, &workspace.cargo);
    cmd!(sh, "{cargo} fmt --all --check").run()?;
    cmd!(sh, "{cargo} fmt --manifest-path {GRAMMAR_MANIFEST} --check").run()?;
    Ok(())
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let (sh, cargo) = (&workspace.shell, &workspace.cargo);
    cmd!(
        sh,
        "{cargo} clippy --workspace --all-targets --locked -- -D warnings"
    )
    .run()?;
    cmd!(
        sh,
        "{cargo} clippy --package moa-mask --package moa-format --package moa-shaders --package moa-runtime-web
            --lib --target wasm32-unknown-unknown --locked -- -D warnings"
    )
    .run()?;
    let target = grammar_target(workspace);
    cmd!(
        sh,
        "{cargo} clippy --manifest-path {GRAMMAR_MANIFEST} --target-dir {target}
            --target wasm32-unknown-unknown --locked -- -D warnings"
    )
    .run()?;
    Ok(())
}

fn rust_tests(workspace: &Workspace) -> Result<()> {
    let (sh, cargo) = (&workspace.shell, &workspace.cargo);
    cmd!(sh, "{cargo} test --workspace --locked").run()?;
    // The software GPU's subgroups are as wide as its vectors: of 4 and of 16 threads, where they were of 8 mostly.
    for (width, threads) in [("128", "4"), ("512", "16")] {
        let _env = [
            sh.push_env("LP_NATIVE_VECTOR_WIDTH", width),
            sh.push_env("MOA_TEST_SUBGROUP", threads),
        ];
        cmd!(
            sh,
            "{cargo} test --locked --package moa-tests --test variants_wgsl"
        )
        .run()?;
    }
    Ok(())
}

fn tint(workspace: &Workspace) -> Result<()> {
    let (sh, cargo) = (&workspace.shell, &workspace.cargo);
    let sources = workspace.root.join("target/wgsl");
    sh.remove_path(&sources)?;
    cmd!(
        sh,
        "{cargo} run --quiet --locked --package moa-shaders --example dump-wgsl -- {sources}"
    )
    .run()?;
    cmd!(sh, "node shaders-wgsl/tint/validate.mjs {sources}").run()?;
    Ok(())
}

/// Runs the page and the package on the bundle of the step `demo`.
fn e2e(workspace: &Workspace) -> Result<()> {
    let gpu = graphics::ensure(workspace)?;
    let sh = &workspace.shell;
    let binaries = workspace.build_binaries(Profile::Dev, &["moa-compile"])?;
    let _env = [
        sh.push_env("MOA_COMPILE", binaries.join("moa-compile")),
        sh.push_env("MOA_BUNDLE", workspace.root.join(DEMO_BUNDLE)),
        sh.push_env("MOA_CHROMIUM", &gpu.chromium),
        sh.push_env(
            "MOA_CHROMIUM_PLAIN",
            format!("{}/chromium", graphics::CHROMIUM),
        ),
        sh.push_env("LVP_SO", &gpu.driver),
    ];
    let tests = std::fs::read_dir(workspace.root.join("tests/web"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(".test.mjs"))
        .collect::<std::collections::BTreeSet<_>>();
    ensure!(!tests.is_empty(), "tests/web holds no test");
    cmd!(
        sh,
        "node --test --test-concurrency=1 --test-reporter=spec {tests...}"
    )
    .run()
    .context("the browser tests failed")
}
