//! Evaluation: what a plan does to a model, measured on prompts that calibration never saw.
//!
//! ```text
//! suites (retrieval, lines, windows, longbench) --trials--> run --rows--> results --> tables, JSON
//! methods (dense, plans, baselines) --masks----------------> |
//! scorer (a model that answers and reads) -----------------> |
//! ```

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
pub(crate) use scorer::{Scorer, Under, scorer_of};
pub(crate) use trial::Family;
pub(crate) use windows::Corpus;
