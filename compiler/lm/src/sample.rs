//! A text and the tokens in it that carry loss.

use crate::{LmError, Result};

/// Which tokens of a text carry loss. The token at position t is predicted from position t - 1, so position 0
/// never carries any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// All from this position on (at least position 1): a response after its prompt.
    From(u32),
    /// Exactly these positions, ascending.
    At(Vec<u32>),
}

/// A text to profile or to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Token ids, prompt and response together.
    pub ids: Vec<u32>,
    /// What carries loss.
    pub targets: Targets,
}

impl Sample {
    /// A prompt and the response that begins at `response_start`.
    pub fn new(ids: Vec<u32>, response_start: u32) -> Self {
        Self {
            ids,
            targets: Targets::From(response_start),
        }
    }

    /// The rows that predict targets, ascending, and the tokens that they should predict.
    pub(crate) fn rows_and_targets(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let bad = |problem: String| LmError::BadTargets {
            problem,
            len: self.ids.len(),
        };
        let len = u32::try_from(self.ids.len()).map_err(|_too_many| LmError::TooManyTokens {
            got: self.ids.len(),
            most: u32::MAX,
        })?;
        let positions: Vec<u32> = match &self.targets {
            Targets::From(start) => ((*start).max(1)..len).collect(),
            Targets::At(positions) => positions.clone(),
        };
        if positions.is_empty() {
            return Err(bad("no token carries loss".into()));
        }
        if !positions.is_sorted_by(|a, b| a < b) {
            return Err(bad("target positions do not ascend".into()));
        }
        if let Some(&position) = positions
            .iter()
            .find(|&&position| position == 0 || position >= len)
        {
            return Err(bad(format!("no row predicts position {position}")));
        }
        let targets = positions
            .iter()
            .map(|&position| self.ids[position as usize])
            .collect();
        let rows = positions.iter().map(|position| position - 1).collect();
        Ok((rows, targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_predicted_from_the_row_before_it() {
        let sample = Sample::new(vec![5, 6, 7, 8], 2);
        assert_eq!(sample.rows_and_targets().unwrap(), (vec![1, 2], vec![7, 8]));
        let all = Sample::new(vec![5, 6, 7, 8], 0);
        assert_eq!(all.rows_and_targets().unwrap().0, [0, 1, 2]);
        let at = Sample {
            targets: Targets::At(vec![1, 3]),
            ..all
        };
        assert_eq!(at.rows_and_targets().unwrap(), (vec![0, 2], vec![6, 8]));
    }

    #[test]
    fn targets_that_nothing_predicts_are_refused() {
        let ids = vec![5, 6, 7, 8];
        assert!(Sample::new(ids.clone(), 4).rows_and_targets().is_err());
        for positions in [vec![], vec![0], vec![4], vec![2, 2], vec![3, 1]] {
            let sample = Sample {
                ids: ids.clone(),
                targets: Targets::At(positions),
            };
            assert!(sample.rows_and_targets().is_err());
        }
    }
}
