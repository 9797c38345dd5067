//! `moa-compile`: from a checkpoint to a bundle that a browser runs.
//!
//! ```text
//! MODEL --import--> weights --profile--> influence curves --solve--> plan --+
//!                      |                                                    +--> bundle --verify--> done
//!                      +--quantize------------------------------------------+
//! ```
//!
//! A library behind a thin binary, so that tests drive the same code. It knows files, clocks and terminals; it
//! deliberately knows no GPU API: the CPU and later CUDA sit behind `moa_lm::Device`.

mod bundle;
pub mod calibrate;
mod calibration;
mod cli;
mod commands;
mod device;
mod effort;
mod evaluate;
mod exit;
mod files;
mod hint;
mod ids;
mod interrupt;
mod journal;
mod opened;
mod perplexity;
mod pipeline;
mod plans;
mod printer;
mod profile;
mod report;
mod search;
mod source;
mod stages;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::printer::Printer;

/// Runs the command line `args` (the program's name first) and returns the code to exit with: 0 done, 1 the
/// user can mend it, 2 we have to.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error, &args),
    };
    let printer = Printer::new(&cli.global);
    let outcome = match cli.command {
        Command::Build(args) => commands::build::run(&args, &printer),
        Command::Profile(args) => commands::profile::run(&args, &printer),
        Command::Solve(args) => commands::solve::run(&args, &printer),
        Command::Search(args) => commands::search::run(&args, &printer),
        Command::Study(args) => commands::study::run(&args, &printer),
        Command::Report(args) => commands::report::run(&args, &printer),
        Command::Inspect(args) => commands::inspect::run(&args, &printer),
        Command::Verify(args) => commands::verify::run(&args, &printer),
        Command::Generate(args) => commands::generate::run(&args, &printer),
        Command::Logits(args) => commands::logits::run(&args, &printer),
        Command::Eval(args) => commands::eval::run(&args, &printer),
        Command::Tokenize(args) => commands::tokenize::run(&args, &printer),
    };
    exit::finish(outcome, &printer)
}
