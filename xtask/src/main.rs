//! Build, test and demo of the whole repository: the only tool that a contributor needs besides cargo, node and python3.
//!
//! It decides what runs, in which order and with which pinned outside tools. What the pieces do is theirs:
//! no model, plan or kernel is known here.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the headings and figures are what this program is for"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench_web;
mod demo;
mod gpu_pack;
mod graphics;
mod setup;
mod test;
mod wasm;
mod web;
mod workspace;

use setup::Purpose;
use workspace::Workspace;

/// Build, test and demo of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need: system packages, npm packages, the model, the software GPU
    Setup {
        /// Only what the demo needs: no browser, no software GPU
        #[arg(long)]
        demo: bool,
    },
    /// Everything that CI checks, from formatting to a browser that generates
    Test(test::Options),
    /// Compile a small model, verify it and serve the pages on localhost
    Demo(demo::Options),
    /// Time the engine beside other browser engines in headless Chromium
    BenchWeb(bench_web::Options),
    /// Gather tests, benches and moa-compile in gpu-pack/, for a host with a GPU and no Rust
    GpuPack,
    /// Build the wasm engine into web/moa-runtime/wasm and check its size
    Wasm,
    /// Build the npm package and the pages
    Web {
        /// Where the pages go
        #[arg(long, default_value = "target/web")]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let workspace = Workspace::find()?;
    match Cli::parse().command {
        Command::Setup { demo: true } => setup::run(&workspace, Purpose::Demo),
        Command::Setup { demo: false } => setup::run(&workspace, Purpose::Test),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Demo(options) => demo::run(&workspace, &options),
        Command::BenchWeb(options) => bench_web::run(&workspace, &options),
        Command::GpuPack => gpu_pack::run(&workspace),
        Command::Wasm => {
            setup::npm(&workspace)?;
            wasm::build(&workspace)?;
            wasm::check_size(&workspace)
        }
        Command::Web { out } => {
            setup::npm(&workspace)?;
            setup::book(&workspace)?;
            wasm::build(&workspace)?;
            web::build(&workspace, &out)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
