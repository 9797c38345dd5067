//! Twin of `influence_entries`: [`crate::influence`] gives the effect of every entry, and sums by spans and blocks.

pub use crate::influence::{Influence, influence};
