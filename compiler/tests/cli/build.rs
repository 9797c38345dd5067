//! A whole bundle from a tiny model: what is in it, that it is the same twice, that work is not done twice.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{command, moa, names, ok, tiny, write_ids_calibration};

fn build(folder: &Path, out: &str, calibration: &str) -> std::process::Output {
    moa([
        "build".as_ref(),
        tiny().as_os_str(),
        "--out".as_ref(),
        folder.join(out).as_os_str(),
        "--calibration".as_ref(),
        folder.join(calibration).as_os_str(),
        "--lengths=128,192".as_ref(),
        "--context=512".as_ref(),
        "--sink=16".as_ref(),
        "--block=16".as_ref(),
        "--density=0.5".as_ref(),
        "--quant=keep".as_ref(),
        "--name=Tiny Llama".as_ref(),
    ])
}

#[test]
fn a_bundle_is_verified_inspected_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    write_ids_calibration(&folder.path().join("a.jsonl"), 4, 192, 1);
    ok(&build(folder.path(), "bundle", "a.jsonl"));
    let bundle = folder.path().join("bundle");
    assert_eq!(
        names(folder.path()),
        ["a.jsonl", "bundle"],
        "nothing temporary stays"
    );
    let files = names(&bundle);
    for name in ["manifest.json", "weights-000.bin", "README.md"] {
        assert!(
            files.iter().any(|file| file == name),
            "{name} is not in {files:?}"
        );
    }
    ok(&moa(["verify".as_ref(), bundle.as_os_str()]));
    let document: Value = serde_json::from_str(&ok(&moa([
        "inspect".as_ref(),
        bundle.as_os_str(),
        "--json".as_ref(),
    ])))
    .unwrap();
    assert_eq!(document["name"], "Tiny Llama");
    let plans = document["plans"].as_array().unwrap();
    assert!(!plans.is_empty());
    for length in plans[0]["lengths"].as_array().unwrap() {
        assert!(
            length["kv_density"].as_f64().unwrap() <= 0.5 || length["context"].as_u64() > Some(512),
            "{length}"
        );
        assert!(length["dense_bytes"].as_u64().unwrap() > 0);
    }
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[0, 5, 17, 200, 33]").unwrap();
    let run = |model: &Path, plan: &str| -> Value {
        let output = moa([
            "generate".as_ref(),
            model.as_os_str(),
            "--ids".as_ref(),
            ids.as_os_str(),
            "--max-tokens=6".as_ref(),
            "--json".as_ref(),
            format!("--plan={plan}").as_ref(),
        ]);
        serde_json::from_str(&ok(&output)).unwrap()
    };
    let from_bundle = run(&bundle, "dense");
    assert_eq!(from_bundle["tokens"].as_array().unwrap().len(), 6);
    assert_eq!(
        from_bundle["tokens"],
        run(&tiny(), "dense")["tokens"],
        "f32 weights are kept"
    );
}

#[test]
fn the_same_inputs_give_the_same_bytes_and_other_calibration_another_plan() {
    let folder = tempfile::tempdir().unwrap();
    write_ids_calibration(&folder.path().join("a.jsonl"), 3, 192, 1);
    write_ids_calibration(&folder.path().join("b.jsonl"), 3, 192, 2);
    for (out, calibration) in [("one", "a.jsonl"), ("two", "a.jsonl"), ("other", "b.jsonl")] {
        ok(&build(folder.path(), out, calibration));
    }
    let read = |out: &str| -> Vec<(String, Vec<u8>)> {
        let bundle = folder.path().join(out);
        names(&bundle)
            .into_iter()
            .map(|name| (name.clone(), std::fs::read(bundle.join(&name)).unwrap()))
            .collect()
    };
    assert!(read("one") == read("two"), "same inputs, same bytes");
    let hash = |out: &str| {
        let text = std::fs::read_to_string(folder.path().join(out).join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_str(&text).unwrap();
        manifest["plans"][0]["sha256"].as_str().unwrap().to_owned()
    };
    assert_ne!(hash("one"), hash("other"));
}

#[test]
fn a_killed_build_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    write_ids_calibration(&folder.path().join("a.jsonl"), 24, 1024, 1);
    let args = |out: &str| {
        [
            "build".into(),
            tiny().into_os_string(),
            "--out".into(),
            folder.path().join(out).into_os_string(),
            "--calibration".into(),
            folder.path().join("a.jsonl").into_os_string(),
            "--lengths=1024".into(),
            "--samples=24".into(),
            "--sink=16".into(),
            "--block=16".into(),
            "-v".into(),
        ]
    };
    let mut child = command(args("bundle"))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let work = folder.path().join(".bundle.moa-work");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        if work.is_dir()
            && names(&work)
                .iter()
                .filter(|name| name.ends_with(".safetensors"))
                .count()
                >= 2
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !folder.path().join("bundle").exists(),
        "nothing half-written"
    );
    let done = names(&work)
        .iter()
        .filter(|name| name.ends_with(".safetensors"))
        .count();
    assert!(
        (2..24).contains(&done),
        "killed with {done} samples done: too late to show anything"
    );
    let output = moa(args("bundle"));
    ok(&output);
    let said = crate::stderr(&output);
    assert!(
        said.contains(&format!("{done} of 24 samples were profiled before")),
        "{said}"
    );
    ok(&moa(args("fresh")));
    let plan = |out: &str| std::fs::read(folder.path().join(out).join("manifest.json")).unwrap();
    assert!(
        plan("bundle") == plan("fresh"),
        "resumed and uninterrupted runs agree"
    );
}
