//! Damage of every kind that a user can bring: exit 1, one sentence, a hint, no panic, nothing half-written.

use std::path::Path;

use crate::{moa, names, ok, refused, tiny, write_ids_calibration};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in names(from) {
        std::fs::write(to.join(&name), std::fs::read(from.join(&name)).unwrap()).unwrap();
    }
}

fn inspect(path: &Path) -> std::process::Output {
    moa(["inspect".as_ref(), path.as_os_str()])
}

#[test]
fn folders_and_files_that_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    refused(&inspect(folder.path()));
    refused(&inspect(&folder.path().join("nothing")));
    let file = folder.path().join("x.gguf");
    for bytes in [
        &b""[..],
        b"GGUF",
        b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"not a model at all, but long enough to look at",
    ] {
        std::fs::write(&file, bytes).unwrap();
        refused(&inspect(&file));
    }
}

#[test]
fn truncated_and_damaged_weights() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy(&tiny(), &model);
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[1, 2, 3]").unwrap();
    let generate = || {
        moa([
            "generate".as_ref(),
            model.as_os_str(),
            "--ids".as_ref(),
            ids.as_os_str(),
            "--max-tokens=1".as_ref(),
        ])
    };
    ok(&generate());
    let mut oversized = whole.clone();
    oversized[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = whole.clone();
    garbled[20..60].fill(b'x');
    for damaged in [
        whole[..whole.len() / 2].to_vec(),
        whole[..5].to_vec(),
        oversized,
        garbled,
        Vec::new(),
    ] {
        std::fs::write(&weights, damaged).unwrap();
        refused(&generate());
    }
}

#[test]
fn unsupported_architectures_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy(&tiny(), &model);
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let other = config
        .replace("LlamaForCausalLM", "MambaForCausalLM")
        .replace("\"llama\"", "\"mamba\"");
    std::fs::write(model.join("config.json"), other).unwrap();
    let said = refused(&inspect(&model));
    assert!(said.to_lowercase().contains("mamba"), "{said}");
}

#[test]
fn any_flipped_bit_in_a_bundle_is_found() {
    let folder = tempfile::tempdir().unwrap();
    write_ids_calibration(&folder.path().join("a.jsonl"), 2, 128, 1);
    let bundle = folder.path().join("bundle");
    ok(&moa([
        "build".as_ref(),
        tiny().as_os_str(),
        "--out".as_ref(),
        bundle.as_os_str(),
        "--calibration".as_ref(),
        folder.path().join("a.jsonl").as_os_str(),
        "--lengths=128".as_ref(),
        "--sink=16".as_ref(),
        "--block=16".as_ref(),
    ]));
    for name in names(&bundle) {
        if name == "README.md" || name == "LICENSE" {
            continue;
        }
        let path = bundle.join(&name);
        let whole = std::fs::read(&path).unwrap();
        // Every place in a file is alike to a checksum; the manifest's are not, so it is tried more densely.
        let places = if name == "manifest.json" { 60 } else { 12 };
        for place in 0..places {
            let index = place * (whole.len() - 1) / (places - 1);
            let mut damaged = whole.clone();
            damaged[index] ^= 1 << (place % 8);
            std::fs::write(&path, &damaged).unwrap();
            let output = moa(["verify".as_ref(), bundle.as_os_str()]);
            assert_ne!(
                output.status.code(),
                Some(0),
                "{name}: bit {} of byte {index} went unnoticed",
                place % 8
            );
            refused(&output);
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        refused(&moa(["verify".as_ref(), bundle.as_os_str()]));
        std::fs::write(&path, &whole).unwrap();
    }
    ok(&moa(["verify".as_ref(), bundle.as_os_str()]));
}

#[test]
fn impossible_wishes() {
    let folder = tempfile::tempdir().unwrap();
    let calibration = folder.path().join("a.jsonl");
    write_ids_calibration(&calibration, 2, 128, 1);
    let out = folder.path().join("bundle");
    let build = |extra: &[&str]| {
        let mut args = vec![
            "build".to_owned(),
            tiny().display().to_string(),
            format!("--out={}", out.display()),
            format!("--calibration={}", calibration.display()),
        ];
        args.extend(extra.iter().map(ToString::to_string));
        let said = refused(&moa(args));
        assert!(!out.exists());
        said
    };
    let small = ["--sink=16", "--block=16", "--lengths=128"];
    let with = |extra: &[&'static str]| {
        small
            .iter()
            .copied()
            .chain(extra.iter().copied())
            .collect::<Vec<_>>()
    };
    assert!(
        build(&["--lengths=1024", "--context=2048"]).contains("128"),
        "the longest record is named"
    );
    assert!(build(&with(&["--density=0.001"])).contains("0.001"));
    build(&with(&["--density=0"]));
    build(&with(&["--density=1.5"]));
    build(&with(&["--density=NaN"]));
    build(&with(&["--context=0"]));
    build(&["--sink=10", "--block=16", "--lengths=128"]);
    build(&["--block=0", "--lengths=128"]);
    build(&with(&["--device=cuda"]));
    std::fs::write(
        folder.path().join("plan.json"),
        r#"{"sink":16,"spans":[[64,64]]}"#,
    )
    .unwrap();
    let plan = format!("--plan={}", folder.path().join("plan.json").display());
    let said = build(&[plan.as_str()]);
    assert!(said.contains("layers"), "{said}");
    for text in [
        "",
        "not json\n",
        "{\"ids\": [1,2,3], \"response_start\": 9}\n",
        "{\"ids\": [99999], \"response_start\": 0}\n",
    ] {
        std::fs::write(&calibration, text).unwrap();
        build(&small);
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    // A file system that is always full, wherever the tests run.
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[1, 2, 3]").unwrap();
    let shm = tempfile::Builder::new()
        .prefix("moa-full")
        .tempdir()
        .unwrap();
    let limited = std::process::Command::new("sh")
        .arg("-c")
        // A limit on file size stands in for a full disk: both fail the write in the middle.
        .arg(format!(
            "ulimit -f 8; trap '' XFSZ; exec {} logits {} --ids {} --out {}",
            env!("CARGO_BIN_EXE_moa-compile"),
            tiny().display(),
            ids.display(),
            shm.path().join("logits.safetensors").display()
        ))
        .output()
        .unwrap();
    // 3 * 320 * 4 bytes fit in 8 blocks of 512: this must pass, or the next line shows nothing.
    assert_eq!(
        limited.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&limited.stderr)
    );
    let limited = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!(
            "ulimit -f 8; trap '' XFSZ; exec {} build {} --out {} --plan {} ",
            env!("CARGO_BIN_EXE_moa-compile"),
            tiny().display(),
            shm.path().join("bundle").display(),
            {
                let plan = folder.path().join("plan.json");
                std::fs::write(&plan, r#"{"sink":16,"spans":[[64,64],[64,64],[64,64]]}"#).unwrap();
                plan.display().to_string()
            }
        ))
        .output()
        .unwrap();
    assert_eq!(
        limited.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&limited.stderr)
    );
    assert_eq!(
        names(shm.path()),
        ["logits.safetensors"],
        "nothing half-written"
    );
}
