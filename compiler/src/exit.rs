//! How a run ends: exit codes, errors with their causes, and hints.

use std::ffi::OsString;
use std::process::ExitCode;

use serde_json::json;

use crate::hint::hint_of;
use crate::printer::{Printer, note};

const USER: u8 = 1;
const INTERNAL: u8 = 2;

/// An error that is ours and not the user's: exit 2.
#[derive(Debug, thiserror::Error)]
#[error("internal error: {0}")]
pub(crate) struct Internal(pub(crate) String);

/// Turns a command's outcome into the exit code, printing the error if there is one.
pub(crate) fn finish(outcome: anyhow::Result<()>, printer: &Printer) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    let is_broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let code = if error.chain().any(|cause| cause.is::<Internal>()) {
        INTERNAL
    } else {
        USER
    };
    let fallback = if code == USER {
        "`moa-compile COMMAND --help` says what is expected"
    } else {
        "this is a fault of moa-compile; -vv says more"
    };
    let hint = hint_of(&error).unwrap_or_else(|| fallback.to_owned());
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // `#[error(transparent)]` and messages that quote their source would say the same twice.
        if !causes.last().is_some_and(|last| last.contains(&text)) {
            causes.push(text);
        }
    }
    if printer.is_json() {
        let document = json!({"schema_version": 1, "error": {"message": causes[0], "causes": causes[1..], "hint": hint, "exit_code": code}});
        let _ = printer.result(&document, "");
    }
    note(&format!("error: {}", causes[0]));
    for cause in &causes[1..] {
        note(&format!("  caused by: {cause}"));
    }
    note(&format!("\nhint: {hint}"));
    ExitCode::from(code)
}

/// Help and version end well; everything else that clap refuses is the user's error.
pub(crate) fn usage(error: &clap::Error, args: &[OsString]) -> ExitCode {
    let asked = !error.use_stderr();
    if !asked && args.iter().any(|arg| arg == "--json") {
        let document = json!({"schema_version": 1, "error": {"message": error.kind().to_string(), "causes": [], "hint": "see --help", "exit_code": USER}});
        let _ = serde_json::to_writer_pretty(std::io::stdout().lock(), &document);
    }
    let _ = error.print();
    if asked {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(USER)
    }
}
