//! Says what tests may expect: a CUDA device with `MOA_TEST_CUDA=yes`, and SmolLM2's weights where they lie. Otherwise they are shown as ignored.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=MOA_TEST_CUDA");
    println!("cargo::rerun-if-env-changed=MOA_SMOLLM2_GGUF");
    if std::env::var("MOA_TEST_CUDA").as_deref() != Ok("yes") {
        println!("cargo::rustc-cfg=skip_cuda");
    }
    let default = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let path =
        std::env::var_os("MOA_SMOLLM2_GGUF").map_or_else(|| PathBuf::from(default), PathBuf::from);
    println!("cargo::rerun-if-changed={}", path.display());
    if !path.is_file() {
        println!("cargo::rustc-cfg=skip_smollm2");
    }
}
