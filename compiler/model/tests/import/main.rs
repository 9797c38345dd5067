//! Importing checkpoints: every family and both formats on tiny random models, refusals, damage.
//!
//! One binary, because linking candle and tokenizers is what these tests cost. Nothing here computes logits:
//! that the imported weights mean what they should is the business of the oracle tests of `moa-lm`.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "functions that write tiny checkpoints; a failure is the test's failure"
)]

mod damage;
mod families;
mod gguf_files;
mod making;
mod refusals;
mod smollm2;
mod templates;
mod tokenizers;
