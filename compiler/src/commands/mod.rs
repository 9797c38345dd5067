//! One file a command: what it does, without a word about how it was typed.

pub(crate) mod build;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod profile;
pub(crate) mod report;
pub(crate) mod search;
pub(crate) mod solve;
pub(crate) mod study;
pub(crate) mod tokenize;
pub(crate) mod verify;
