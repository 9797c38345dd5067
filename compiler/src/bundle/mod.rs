//! Bundles on disk: written whole or not at all, read with every hash checked.

mod open;
mod quantize;
mod readme;
mod write;

pub(crate) use open::{Bundle, BundleError};
pub(crate) use write::{WriteSpec, check_target, write};
