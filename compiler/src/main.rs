//! The `moa-compile` binary: parse, run, turn the outcome into an exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    moa_compile::run(std::env::args_os())
}
