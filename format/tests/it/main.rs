//! Round trips, golden bytes and damage of everything this crate reads and writes.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "fixtures fail loudly; random bits are cut on purpose"
)]

mod blocks;
mod fixture;
mod import;
mod manifest;
mod model;
mod plan;
mod plan_bin;
mod quant;
mod shard;
