//! Round trips, golden bytes and damage of everything this crate reads and writes.

mod blocks;
mod fixture;
mod import;
mod manifest;
mod model;
mod plan;
mod plan_bin;
mod quant;
mod shard;
