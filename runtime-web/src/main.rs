//! `moa-run`: a bundle on the native GPU. Ids in, ids out; text is the business of `moa-compile` and the browser.
//!
//! stdout carries the result, stderr the rest. Exit: 0 done, 1 the user's error, 2 no device or a defect.

#[cfg(not(target_arch = "wasm32"))]
mod cli;

#[cfg(not(target_arch = "wasm32"))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(target_arch = "wasm32")]
fn main() {}
