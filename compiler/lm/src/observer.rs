//! How long work reports its progress and learns that nobody wants it any more.
//!
//! The library draws nothing; whoever calls it decides what a user sees.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{LmError, Result};

/// What a pass over the model is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The dense run that KL compares with.
    Teacher,
    /// From the first layer to the last.
    Forward,
    /// From the last layer to the first.
    Backward,
    /// Prompt tokens entering a session; counted in tokens, not layers.
    Prefill,
}

/// One step that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is being done.
    pub phase: Phase,
    /// Steps of the phase that have ended.
    pub done: u32,
    /// Steps of the phase in all.
    pub total: u32,
}

/// Told after every layer; asked before every layer whether to go on.
pub trait Observer: Sync {
    /// A step has ended.
    fn step(&self, step: Step) {
        let _ = step;
    }

    /// Whether to stop with [`LmError::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Observer for () {}

/// A flag that a signal handler may set.
impl Observer for AtomicBool {
    fn cancelled(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}

/// Ends the work if the observer wants that.
pub(crate) fn check(observer: &dyn Observer) -> Result<()> {
    if observer.cancelled() {
        Err(LmError::Cancelled)
    } else {
        Ok(())
    }
}
