//! Evaluation: what a plan does to a model, measured on prompts that calibration never saw.

mod essays;
pub mod passkey;
