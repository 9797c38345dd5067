//! Ctrl-C: the first asks for an orderly end, the second ends at once.

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<()> = OnceLock::new();

/// The flag that Ctrl-C sets; the handler is installed at the first call.
pub(crate) fn flag() -> &'static AtomicBool {
    INSTALLED.get_or_init(|| {
        let handler = || {
            if ASKED.swap(true, Ordering::SeqCst) {
                #[expect(
                    clippy::exit,
                    reason = "asked twice; files are written whole or not at all"
                )]
                std::process::exit(1);
            }
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C will end at once: {error}");
        }
    });
    &ASKED
}

/// Breaks once Ctrl-C was pressed.
pub(crate) fn check(flag: &AtomicBool) -> ControlFlow<()> {
    if flag.load(Ordering::Relaxed) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
