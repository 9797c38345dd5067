//! How long the device spends on what, measured by events around every operation; off unless asked for.

use std::sync::{Mutex, PoisonError};

use moa_kernels::{Gpu, Mark, Result};

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Copies and conversions.
    Copies,
    /// Products with weights.
    Products,
    /// Norms, rotations, activations.
    Rows,
    /// Attention, forward.
    Attention,
    /// Gradients of attention.
    AttentionBackward,
    /// The costs of spans.
    Influence,
    /// Losses with their gradients.
    Losses,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Copies,
        Self::Products,
        Self::Rows,
        Self::Attention,
        Self::AttentionBackward,
        Self::Influence,
        Self::Losses,
    ];
}

/// Marks on the device's time line.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Option<Vec<(Stage, Mark, Mark)>>>);

impl Recorder {
    /// Starts anew.
    pub(crate) fn start(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Runs `work`, between two marks if somebody wants to know.
    pub(crate) fn around<R>(
        &self,
        gpu: &Gpu,
        stage: Stage,
        work: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let on = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some();
        if !on {
            return work();
        }
        let start = gpu.mark()?;
        let result = work()?;
        let end = gpu.mark()?;
        if let Some(marks) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            marks.push((stage, start, end));
        }
        Ok(result)
    }

    /// Milliseconds of each stage since [`start`](Self::start), after which nothing is recorded any more.
    pub(crate) fn stop(&self, gpu: &Gpu) -> Result<Vec<(Stage, f64)>> {
        gpu.synchronize()?;
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let marks = marks.unwrap_or_default();
        Stage::ALL
            .into_iter()
            .map(|wanted| {
                let mut ms = 0.0;
                for (_, start, end) in marks.iter().filter(|(stage, ..)| *stage == wanted) {
                    ms += f64::from(start.ms_to(end)?);
                }
                Ok((wanted, ms))
            })
            .collect()
    }
}
