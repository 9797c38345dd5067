//! Sets `skip_smollm2` where SmolLM2's GGUF file is absent, so that tests that read it show as ignored.

use std::path::Path;

fn main() {
    const VARIABLE: &str = "MOA_SMOLLM2_GGUF";
    let default =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os(VARIABLE).map_or(default, Into::into);
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed={}", path.display());
    if !path.is_file() {
        println!("cargo::rustc-cfg=skip_smollm2");
    }
}
