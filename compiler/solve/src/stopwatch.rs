//! The time a solve has taken and has left. The only file of the crate that reads a clock.

use std::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch {
    started: Instant,
    limit_secs: f64,
}

impl Stopwatch {
    pub(crate) fn start(limit_secs: f64) -> Self {
        Self {
            started: Instant::now(),
            limit_secs,
        }
    }

    pub(crate) fn secs(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    #[cfg(feature = "highs")]
    pub(crate) fn left_secs(&self) -> f64 {
        (self.limit_secs - self.secs()).max(0.0)
    }

    /// Whether `share` of the limit has passed: searches that refine a plan stop before all of it is gone.
    pub(crate) fn past(&self, share: f64) -> bool {
        self.secs() >= self.limit_secs * share
    }
}
