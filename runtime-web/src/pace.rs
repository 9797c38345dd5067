//! How many tokens a batch takes: one at first, for the first word to come soon, then more, for as long as a batch
//! comes back quickly enough that a reader sees text flow.

use std::time::{Duration, Instant};

use crate::buffers::MAX_DECODE_BATCH;

/// A batch that takes less is followed by a larger one.
const SHORT: Duration = Duration::from_millis(40);
/// A batch that takes more is followed by a smaller one.
const LONG: Duration = Duration::from_millis(100);

/// The size of the next batch.
#[derive(Debug)]
pub(crate) struct Pace {
    batch: u32,
    most: u32,
    last: Instant,
}

impl Pace {
    pub(crate) fn new(most: u32) -> Self {
        Self {
            batch: 1,
            most: most.clamp(1, MAX_DECODE_BATCH),
            last: Instant::now(),
        }
    }

    pub(crate) fn batch(&self) -> u32 {
        self.batch
    }

    /// A batch came back.
    pub(crate) fn landed(&mut self) {
        let now = Instant::now();
        self.took(now - self.last);
        self.last = now;
    }

    fn took(&mut self, time: Duration) {
        if time < SHORT {
            self.batch = (2 * self.batch).min(self.most);
        } else if time > LONG {
            self.batch = (self.batch / 2).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_quick_and_shrink_when_they_are_not() {
        let mut pace = Pace::new(100);
        let batches = |pace: &mut Pace, millis, times| -> Vec<u32> {
            (0..times)
                .map(|_| {
                    pace.took(Duration::from_millis(millis));
                    pace.batch()
                })
                .collect()
        };
        assert_eq!(batches(&mut pace, 10, 7), [2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(batches(&mut pace, 60, 2), [32, 32]);
        assert_eq!(batches(&mut pace, 900, 6), [16, 8, 4, 2, 1, 1]);
        assert_eq!(batches(&mut Pace::new(3), 0, 2), [2, 3]);
    }
}
