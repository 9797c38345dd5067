//! `moa-run` from outside, as far as it goes without a device: exit codes, and what goes where.

#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share may unwrap as tests do"
)]

use std::process::{Command, Output};

fn moa_run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moa-run"))
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_and_version_are_answers() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["generate", "--help"],
        &["bench", "--help"],
        &["perplexity", "--help"],
        &["random", "--help"],
    ] {
        let output = moa_run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(
            text(&output.stdout).contains("moa-run") && output.stderr.is_empty(),
            "{args:?}"
        );
    }
}

#[test]
fn wrong_usage_is_the_users_error() {
    for args in [
        &[][..],
        &["generate"],
        &["dance"],
        &[
            "generate",
            "--bundle",
            "x",
            "--ids",
            "y",
            "--max-tokens",
            "-1",
        ],
    ] {
        let output = moa_run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{args:?}"
        );
    }
}

#[test]
fn a_missing_bundle_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[1, 2, 3]").unwrap();
    let (bundle, ids) = (folder.path().to_str().unwrap(), ids.to_str().unwrap());
    let output = moa_run(&["generate", "--bundle", bundle, "--ids", ids]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let message = text(&output.stderr);
    assert!(
        message.starts_with("error: ") && message.contains("manifest.json"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");

    let output = moa_run(&["generate", "--bundle", bundle, "--ids", ids, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert!(
        document["error"]["message"]
            .as_str()
            .unwrap()
            .contains("manifest.json")
    );
}

#[test]
fn ids_must_be_ids() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ids.json");
    for content in ["", "[]", "[-1]", "[1.5]", "{\"ids\": [1]}", "[99999999999]"] {
        std::fs::write(&path, content).unwrap();
        let output = moa_run(&[
            "generate",
            "--bundle",
            "nowhere",
            "--ids",
            path.to_str().unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(1), "{content:?}");
        assert!(text(&output.stderr).contains("ids.json"), "{content:?}");
    }
}

#[test]
fn sampling_options_are_checked_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ids.json");
    std::fs::write(&path, "[1]").unwrap();
    let output = moa_run(&[
        "generate",
        "--bundle",
        "nowhere",
        "--ids",
        path.to_str().unwrap(),
        "--top-p",
        "2",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("top-p"));
}

#[test]
fn a_random_bundle_is_a_bundle_and_never_written_over_anything() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let args = [
        "random",
        "--shape",
        "smollm2-135m",
        "--density",
        "0.25",
        "--out",
        out.to_str().unwrap(),
    ];
    let output = moa_run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let bundle = moa_runtime_web::bundle::Bundle::open(&out).unwrap();
    assert_eq!(bundle.plan(None).unwrap().name, "density-0.25");
    for shard in &bundle.manifest().weights.shards {
        let bytes = std::fs::metadata(out.join(&shard.file)).unwrap().len();
        assert_eq!(bytes, u64::from(shard.bytes), "{}", shard.file);
    }
    let output = moa_run(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("not empty"));
}
