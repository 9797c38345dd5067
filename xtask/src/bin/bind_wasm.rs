//! Writes the JavaScript glue and types around a compiled wasm module, laid out as `wasm-pack --target web` lays it.
//!
//! It does what the `wasm-bindgen` command does, in the version that the crate is compiled with, and no more:
//! compiling and shrinking the module is the business of `cargo xtask wasm`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [module, out_dir] = arguments.as_slice() else {
        anyhow::bail!("usage: bind-wasm MODULE.wasm OUT_DIR");
    };
    Bindgen::new()
        .input_path(module)
        .web(true)?
        .typescript(true)
        // The glue finds the module beside itself, as wasm-pack's does.
        .omit_default_module_path(false)
        .generate(out_dir)
        .with_context(|| format!("no glue could be made for {}", module.display()))
}
