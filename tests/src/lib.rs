//! What tests of several crates share: cases, seeded numbers, a device, a tiny model.
//!
//! Nothing here is a test; `tests/` holds those. The case tables know no backend, so that every GPU backend runs
//! the same ones.

pub mod attention;
pub mod bundles;
pub mod cases;
pub mod gpu;
pub mod random;
pub mod tiny;
