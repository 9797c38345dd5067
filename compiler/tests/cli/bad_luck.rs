//! What a machine may lack for a GPU: each is an error that names it and a hint with `--device cuda`, and a reason to take the CPU, said aloud, with
//! `--device auto`. The libraries are stand-ins (`fake_cuda.c`, by the C compiler that links this test), first on the loader's path.

use std::path::Path;
use std::process::{Command, Output};

use crate::{command, ok, refused, stderr, tiny};

/// Under which names libraries are looked for.
const ENDINGS: [&str; 7] = ["", ".13", ".12", ".11", ".10", ".9", ".1"];

/// A stand-in for a library, or something under its names that is none, so that a real one further down the path is not found either.
fn put(folder: &Path, library: &str, define: Option<&str>) {
    for ending in ENDINGS {
        let file = folder.join(format!("lib{library}.so{ending}"));
        match define {
            None => std::fs::write(file, "no library").unwrap(),
            Some(define) => {
                let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/fake_cuda.c");
                let built = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
                    .args(["-shared", "-fPIC", "-w", define, "-x", "c"])
                    .arg(source)
                    .arg("-o")
                    .arg(file)
                    .status();
                assert!(built.unwrap().success());
                break;
            }
        }
    }
}

/// Runs a model with the libraries of `folder` before all others.
fn logits(folder: &Path, device: &str, setting: Option<(&str, &str)>) -> Output {
    let ids = folder.join("ids.json");
    std::fs::write(&ids, "[1, 2, 3]").unwrap();
    let mut command = command([
        "logits".as_ref(),
        tiny().as_os_str(),
        "--ids".as_ref(),
        ids.as_os_str(),
        "--out".as_ref(),
        folder.join("logits.safetensors").as_os_str(),
        "--device".as_ref(),
        device.as_ref(),
    ]);
    command
        .env("LD_LIBRARY_PATH", folder)
        .env("XDG_CACHE_HOME", folder.join("cache"));
    if let Some((name, value)) = setting {
        command.env(name, value);
    }
    command.output().unwrap()
}

/// Libraries that are there, what the environment tells them, and what must be said.
struct Machine {
    libraries: &'static [&'static str],
    setting: Option<(&'static str, &'static str)>,
    said: &'static str,
    hint: &'static str,
    /// A machine without any GPU is nothing to speak of.
    silent: bool,
}

const ALL: &[&str] = &["cuda", "nvrtc", "cublasLt"];

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "libraries are found otherwise")]
fn whatever_is_missing_has_a_name_and_a_hint() {
    let machine = |libraries, setting, said, hint| Machine {
        libraries,
        setting,
        said,
        hint,
        silent: false,
    };
    let machines = [
        Machine {
            silent: true,
            ..machine(&[], None, "no CUDA driver", "install the NVIDIA driver")
        },
        Machine {
            silent: true,
            ..machine(
                ALL,
                Some(("FAKE_DEVICES", "0")),
                "no device 0",
                "nvidia-smi",
            )
        },
        machine(
            ALL,
            Some(("FAKE_DRIVER", "12080")),
            "driver is too old: found 12.8, need 13.0",
            "update the NVIDIA driver",
        ),
        machine(
            ALL,
            Some(("FAKE_MAJOR", "8")),
            "compute capability 8.0",
            "Hopper",
        ),
        machine(&["cuda", "cublasLt"], None, "no CUDA compiler", "NVRTC 13"),
        machine(
            ALL,
            Some(("FAKE_NVRTC", "12")),
            "NVRTC is too old: found 12.8, need 13",
            "CUDA 13",
        ),
        machine(&["cuda", "nvrtc"], None, "no cuBLAS", "cuBLAS 13"),
        machine(
            ALL,
            Some(("FAKE_CUBLASLT", "120804")),
            "cuBLASLt is too old: found 12.8, need 13",
            "CUDA 13",
        ),
        machine(
            ALL,
            Some(("FAKE_FULL", "1")),
            "out of device memory",
            "more free memory",
        ),
    ];
    for Machine {
        libraries,
        setting,
        said,
        hint,
        silent,
    } in machines
    {
        let folder = tempfile::tempdir().unwrap();
        for (library, define) in [
            ("cuda", "-DCUDA"),
            ("nvrtc", "-DNVRTC"),
            ("cublasLt", "-DCUBLASLT"),
        ] {
            let there = libraries.contains(&library);
            put(folder.path(), library, there.then_some(define));
        }
        let text = refused(&logits(folder.path(), "cuda", setting));
        let hinted = text
            .lines()
            .find(|line| line.starts_with("hint: "))
            .unwrap();
        assert!(text.contains(said), "{said}: {text}");
        assert!(
            hinted.contains("--device cpu") && hinted.contains(hint),
            "{text}"
        );
        // The same machine, without insisting.
        let output = logits(folder.path(), "auto", setting);
        ok(&output);
        let text = stderr(&output);
        let told = text.contains("computing on the CPU") && text.contains(said);
        assert_eq!(told, !silent, "{said}: {text}");
    }
}
