//! Who writes where: standard output is data, standard error is everything else.
//!
//! With `--json` standard output holds exactly one document, also on failure. Progress bars are drawn only on a
//! terminal and never beside logs.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::Global;

/// The one way to the user's screen.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
    quiet: bool,
    bars: MultiProgress,
}

impl Printer {
    pub(crate) fn new(global: &Global) -> Self {
        let level = match (global.quiet, global.verbose) {
            (true, _) => "error",
            (false, 0) => "warn",
            (false, 1) => "info",
            (false, _) => "debug",
        };
        // A second call (tests drive `run` more than once) leaves the first subscriber in place.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(
                tracing_subscriber::EnvFilter::try_from_env("MOA_LOG")
                    .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level)),
            )
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .without_time()
            .try_init();
        let draw = !global.quiet
            && !global.no_progress
            && global.verbose == 0
            && std::io::stderr().is_terminal();
        let target = if draw {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            bars: MultiProgress::with_draw_target(target),
        }
    }

    /// Whether `--json` was given.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A sentence for a person, on standard error; nothing with `--quiet`.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.bars.suspend(|| note(text.as_ref()));
        }
    }

    /// The result: the document with `--json`, else the text.
    pub(crate) fn result(
        &self,
        document: &impl Serialize,
        text: impl AsRef<str>,
    ) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, document).map_err(std::io::Error::other)?;
            writeln!(out)?;
        } else if !text.as_ref().is_empty() {
            writeln!(out, "{}", text.as_ref().trim_end_matches('\n'))?;
        }
        out.flush()
    }

    /// Text that streams to standard output, unless `--json` keeps it for the document.
    pub(crate) fn stream(&self, text: &str) -> std::io::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// A bar of `total` steps of `unit`.
    pub(crate) fn bar(&self, what: &str, total: u64) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(total));
        bar.set_style(
            ProgressStyle::with_template("{msg:24} {bar:32} {pos}/{len} {elapsed} (eta {eta})")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }
}

/// Mebibytes, for people: shown with one decimal.
pub(crate) fn mib(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

/// One line on standard error; a closed standard error is nobody's problem.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
