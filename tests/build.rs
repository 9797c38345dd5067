//! Which tests can run here. A test that cannot is shown as ignored, never as passed; one that was promised a
//! device and finds none fails.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MOA_TEST_WGPU");
    if env::var("MOA_TEST_WGPU").as_deref() != Ok("yes") {
        println!("cargo::rustc-cfg=skip_wgpu");
    }
    println!("cargo::rerun-if-env-changed=MOA_SMOLLM2_GGUF");
    let local = Path::new("../.models/SmolLM2-135M-Instruct.Q4_1.gguf");
    println!("cargo::rerun-if-changed={}", local.display());
    if env::var_os("MOA_SMOLLM2_GGUF").is_none() && !local.exists() {
        println!("cargo::rustc-cfg=skip_smollm2");
    }
}
