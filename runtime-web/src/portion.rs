//! How much of a prefill goes into one submit: what the device takes a tenth of a second for, as earlier chunks have
//! shown, so that a page stays responsive and no watchdog is woken. What is computed does not depend on it.

/// Seconds of work in a submit that are aimed at; one dispatch is the least, whatever it takes.
const SECS: f64 = 0.1;
/// Multiplications in a submit before anything is known: 0.1 s at 5 GMAC/s, which two cores of a CPU do.
const FIRST: u64 = 1 << 29;
/// Less than this in all says more about the way to the device than about the device.
const LEAST_MEASURED: u64 = 1 << 28;

/// The size of the next submits, in multiplications.
#[derive(Debug)]
pub(crate) struct Portion {
    work: u64,
}

impl Portion {
    pub(crate) const fn new() -> Self {
        Self { work: FIRST }
    }

    pub(crate) const fn work(&self) -> u64 {
        self.work
    }

    /// The device took `secs` for `work` multiplications.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a float becomes the nearest count, and a size need not be exact"
    )]
    pub(crate) fn took(&mut self, work: u64, secs: f64) {
        if work >= LEAST_MEASURED && secs > 0.0 {
            self.work = (work as f64 / secs * SECS) as u64;
        }
    }
}

/// Seconds since some moment. Whoever sets the time of day does not set this clock: a chunk that seemed to have taken no
/// time would make the next one a single submit.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn clock() -> f64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed().as_secs_f64()
}

#[cfg(target_arch = "wasm32")]
pub(crate) use crate::bindings::clock;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submit_is_a_tenth_of_a_second() {
        let mut portion = Portion::new();
        assert_eq!(portion.work(), FIRST);
        // 1 GMAC/s: a slow device gets little at a time.
        portion.took(4_000_000_000, 4.0);
        assert_eq!(portion.work(), 100_000_000);
        portion.took(4_000_000_000, 0.001);
        assert_eq!(portion.work(), 400_000_000_000);
        // Nothing is learned from a single token, or where the clock's steps are too long.
        portion.took(1_000_000, 1.0);
        portion.took(4_000_000_000, 0.0);
        assert_eq!(portion.work(), 400_000_000_000);
    }

    #[test]
    fn a_night_asleep_costs_one_chunk_of_small_submits() {
        let mut portion = Portion::new();
        portion.took(4_000_000_000, 0.2);
        let before = portion.work();
        portion.took(4_000_000_000, 8.0 * 3600.0);
        assert!(
            portion.work() < LEAST_MEASURED,
            "single dispatches: {}",
            portion.work()
        );
        portion.took(4_000_000_000, 0.2);
        assert_eq!(portion.work(), before);
    }
}
