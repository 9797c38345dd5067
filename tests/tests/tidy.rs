//! The architecture's invariants, enforced: who may depend on whom, what every file must say, what must not
//! stand in two places. Each sentence here stands in ARCHITECTURE.md too.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Names of all crates that `package` is built from (normal dependencies, no tests) for `target`.
fn crates_of(package: &str, target: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{lib}",
        ])
        .args(["--target", target, "--package", package])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names: BTreeSet<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.trim_end_matches(" (*)").trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(!names.is_empty(), "cargo tree listed nothing for {package}");
    names
}

const NATIVE: &str = "x86_64-unknown-linux-gnu";
const WASM: &str = "wasm32-unknown-unknown";

fn assert_free_of(package: &str, target: &str, forbidden: &[&str]) {
    let names = crates_of(package, target);
    for name in forbidden {
        assert!(
            !names.contains(*name),
            "{package} must not depend on {name}"
        );
    }
}

#[test]
fn the_tree_lists_what_is_there() {
    // The negative control of every test below.
    assert!(crates_of("moa-runtime-web", WASM).contains("wgpu"));
    assert!(crates_of("moa-compile", NATIVE).contains("candle_core"));
}

#[test]
fn shared_crates_know_no_gpu_no_clock_no_terminal() {
    let forbidden = [
        "wgpu",
        "cudarc",
        "candle_core",
        "tokio",
        "clap",
        "indicatif",
        "wasm_bindgen",
        "web_sys",
        "rayon",
        "moa_reference",
    ];
    for package in ["moa-mask", "moa-format", "moa-shaders"] {
        assert_free_of(package, NATIVE, &forbidden);
        assert_free_of(package, WASM, &forbidden);
        let folder = if package == "moa-shaders" {
            "shaders-wgsl"
        } else {
            package.trim_start_matches("moa-")
        };
        for path in files(&root().join(folder).join("src"), &["rs"]) {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in [
                "std::fs",
                "std::time",
                "std::thread",
                "std::net",
                "std::env::var",
            ] {
                assert!(!code.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

#[test]
fn compiler_never_sees_wgpu_and_runtime_never_sees_cuda() {
    assert_free_of(
        "moa-compile",
        NATIVE,
        &[
            "wgpu",
            "naga",
            "wasm_bindgen",
            "moa_runtime_web",
            "moa_shaders",
        ],
    );
    for target in [NATIVE, WASM] {
        assert_free_of(
            "moa-runtime-web",
            target,
            &[
                "cudarc",
                "candle_core",
                "moa_kernels",
                "moa_compile",
                "moa_lm",
            ],
        );
    }
}

#[test]
fn reference_is_in_no_shipped_crate() {
    for package in [
        "moa-compile",
        "moa-runtime-web",
        "moa-kernels",
        "moa-shaders",
        "moa-format",
    ] {
        assert_free_of(package, NATIVE, &["moa_reference"]);
    }
}

#[test]
fn shared_crates_build_for_wasm() {
    let target_dir = root().join("target/tidy-wasm");
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--locked", "--target", WASM])
        .args([
            "--package",
            "moa-mask",
            "--package",
            "moa-format",
            "--package",
            "moa-shaders",
        ])
        .env("CARGO_TARGET_DIR", target_dir)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Files below `folder` with one of the `extensions`, sorted; built and fetched folders left out.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                let skipped = [
                    "target",
                    "node_modules",
                    "dist",
                    "wasm",
                    "pkg",
                    "demo",
                    "fixtures",
                    "snapshots",
                ];
                if !name.starts_with('.') && !skipped.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|ext| extensions.iter().any(|known| ext == *known))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_source_says_what_it_is_for() {
    let rust = files(root(), &["rs"]);
    assert!(rust.len() > 40, "found only {} Rust files", rust.len());
    for path in rust {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("//!"),
            "{} does not begin with //!",
            path.display()
        );
    }
    for path in files(root(), &["wgsl", "cu", "cuh"]) {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("//"),
            "{} does not begin with a header comment",
            path.display()
        );
    }
}

#[test]
fn files_stay_readable() {
    for path in files(root(), &["rs", "wgsl", "cu", "ts"]) {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines <= 650,
            "{} has {lines} lines: split it by concept",
            path.display()
        );
    }
}

#[test]
fn one_kernel_has_one_stem() {
    // A kernel of a GPU backend has its f64 twin under the same stem.
    let stems = |folder: &str, extension: &str| -> BTreeSet<String> {
        let folder = root().join(folder);
        files(&folder, &[extension])
            .iter()
            .filter(|path| path.parent() == Some(folder.as_path()))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect()
    };
    let twins = stems("reference/src", "rs");
    let wgsl = stems("shaders-wgsl/wgsl", "wgsl");
    assert!(!wgsl.is_empty());
    for stem in wgsl.iter().chain(&stems("kernels-cuda/cu", "cu")) {
        assert!(
            twins.contains(stem),
            "{stem} has no twin reference/src/{stem}.rs"
        );
    }
}

#[test]
fn unsafe_code_has_one_file_a_crate() {
    let mut holders: Vec<(PathBuf, PathBuf)> = Vec::new();
    for path in files(root(), &["rs"]) {
        let text = std::fs::read_to_string(&path).unwrap();
        let has_unsafe = text.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//")
                && (line.contains("unsafe {")
                    || line.contains("unsafe fn ")
                    || line.contains("unsafe impl "))
        });
        if has_unsafe && !path.ends_with("tests/tests/tidy.rs") {
            let folder = path
                .ancestors()
                .skip(1)
                .find(|dir| dir.join("Cargo.toml").exists())
                .unwrap()
                .to_path_buf();
            holders.push((folder, path));
        }
    }
    for (folder, path) in &holders {
        let same = holders.iter().filter(|(other, _)| other == folder).count();
        assert_eq!(
            same,
            1,
            "{} is not the only file with unsafe in {}",
            path.display(),
            folder.display()
        );
    }
}

#[test]
fn only_bindings_know_javascript() {
    for path in files(&root().join("runtime-web/src"), &["rs"]) {
        let text = std::fs::read_to_string(&path).unwrap();
        let knows =
            text.contains("wasm_bindgen") || text.contains("js_sys") || text.contains("web_sys");
        assert!(
            !knows || path.starts_with(root().join("runtime-web/src/bindings")),
            "{} knows JavaScript",
            path.display()
        );
    }
}

#[test]
fn the_span_formula_stands_once() {
    for path in files(root(), &["rs", "wgsl", "cu", "ts", "mjs", "js"]) {
        if path.starts_with(root().join("mask")) || path.ends_with("tests/tests/tidy.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap().replace(' ', "");
        assert!(
            !text.contains("alpha+beta*f64::from("),
            "{} computes a span: call moa_mask",
            path.display()
        );
    }
}
