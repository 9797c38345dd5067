//! Wall time by stage of a command: what a search spends on calibration, profiles, programmes and measurements.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

/// Seconds by name. Stages do not overlap: nobody times one inside another.
#[derive(Debug, Default)]
pub(crate) struct Stages(RefCell<BTreeMap<&'static str, f64>>);

impl Stages {
    /// Does `work` on the clock of `stage`.
    pub(crate) fn time<T>(&self, stage: &'static str, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        *self.0.borrow_mut().entry(stage).or_insert(0.0) += begun.elapsed().as_secs_f64();
        result
    }

    /// Seconds so far.
    pub(crate) fn secs(&self) -> BTreeMap<&'static str, f64> {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_by_name() {
        let stages = Stages::default();
        assert_eq!(stages.time("a", || 3), 3);
        let once = stages.secs()["a"];
        let wait = std::time::Duration::from_millis(2);
        stages.time("a", || std::thread::sleep(wait));
        stages.time("b", || ());
        let secs = stages.secs();
        assert!(secs["a"] >= once + 0.002 && secs.len() == 2, "{secs:?}");
    }
}
