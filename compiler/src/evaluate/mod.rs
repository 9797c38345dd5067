//! Evaluation: what a plan does to a model, measured on prompts that calibration never saw.
//!
//! ```text
//! suites (retrieval, lines, windows, longbench) --trials--> run --rows--> results --> tables, JSON
//! methods (dense, plans, baselines) --masks----------------> |
//! scorer (a model that answers and reads) -----------------> |
//! ```

use std::sync::atomic::AtomicBool;

use moa_lm::WeightSource;

use crate::device::Model;
use batched::BatchScorer;
use scorer::LmScorer;

mod batched;
mod duo;
mod essays;
mod haystack;
mod lines;
mod longbench;
mod method;
mod metrics;
mod results;
mod retrieval;
mod run;
mod scorer;
pub(crate) mod statistics;
mod trial;
mod windows;

#[cfg(test)]
pub(crate) use duo::tests as duo_tests;
pub(crate) use longbench::Records;
pub(crate) use method::Method;
pub(crate) use results::{Cell, POOLED, Summary};
pub(crate) use run::{Plan as EvaluationPlan, Row, RowLog};
#[cfg(test)]
pub(crate) use scorer::{Answer, Job};
pub(crate) use scorer::{Scorer, Under};
pub(crate) use trial::Family;
pub(crate) use windows::Corpus;

/// The scorer of a model wherever it lies; on a CUDA device it takes many prompts at once, with weights from `source`.
pub(crate) fn scorer_of<'a>(
    model: &'a Model,
    source: &'a dyn WeightSource,
    cancel: &'a AtomicBool,
) -> Box<dyn Scorer + 'a> {
    match model {
        Model::Cpu(lm) => Box::new(LmScorer::new(lm, cancel)),
        Model::Cuda(lm) => {
            let alone = Box::new(LmScorer::new(lm, cancel));
            let gpu = lm.device().gpu().clone();
            Box::new(BatchScorer::new(alone, gpu, source, cancel))
        }
    }
}
