//! Evaluation, search, study and report on a tiny model: what is written, that it is the same twice, that work is kept.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{moa, names, ok, refused, stderr, tiny, write_ids_calibration};

fn json(args: &[&str]) -> Value {
    let mut all = args.to_vec();
    all.push("--json");
    serde_json::from_str(&ok(&moa(all))).unwrap()
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

/// A plan of the tiny model: three layers of two KV heads.
fn plan(folder: &Path, name: &str, span: u32) -> PathBuf {
    write(
        folder,
        name,
        &format!(r#"{{"sink": 8, "spans": [[{span}, 200], [200, {span}], [{span}, {span}]]}}"#),
    )
}

#[test]
fn every_method_meets_the_same_texts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let plan = plan(folder, "plan.json", 40);
    let plan = plan.to_str().unwrap();
    write(
        folder,
        "duo/config.json",
        r#"{"sink_size": 8, "recent_size": 24}"#,
    );
    write(
        folder,
        "duo/full_attention_heads.tsv",
        "0.9\t0.1\n0.2\t0.8\n0.3\t0.1\n",
    );
    let duo = format!("duo:{}", folder.join("duo").display());
    // The reference's own form: rules of six query heads, three to a KV head.
    let (alphas, betas) = ("[64, 0, -64, 96, 0, 0]", "[0, 0.5, 1, 0, 0.25, 0]");
    let reference = write(
        folder,
        "reference.json",
        &format!(
            r#"{{"alphas": [{alphas}, {alphas}, {alphas}], "betas": [{betas}, {betas}, {betas}]}}"#
        ),
    );
    let reference = format!("moa:{}", reference.display());
    let rows = folder.join("rows.jsonl");
    let model = tiny();
    let methods = format!("{plan},uniform,{duo},{duo}:1.0,{reference},dense-kv8,dense");
    let args = [
        "eval",
        model.to_str().unwrap(),
        "--suites=perplexity,kl,agreement",
        "--lengths=96,160",
        "--trials=3",
        "--methods",
        &methods,
        "--trials-out",
        rows.to_str().unwrap(),
    ];
    let document = json(&args);
    let cells = document["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 3 * 2 * 7);
    let cell = |suite: &str, method: &str| {
        let mut of = cells.iter();
        of.find(|cell| cell["suite"] == suite && cell["method"] == method && cell["length"] == 160)
            .unwrap()
    };
    assert!(cell("kl", "dense")["kl"].as_f64().unwrap().abs() < 1e-6);
    assert!(cell("kl", plan)["kl"].as_f64().unwrap() > 1e-6);
    let rounded = cell("kl", "dense-kv8")["kl"].as_f64().unwrap();
    assert!(rounded > 0.0 && rounded < cell("kl", plan)["kl"].as_f64().unwrap());
    assert_eq!(cell("agreement", "dense")["score"], 1.0);
    // Baselines without a budget take the plan's.
    let density = |method: &str| cell("kl", method)["kv_density"].as_f64().unwrap();
    let (own, uniform, within) = (density(plan), density("uniform"), density(&duo));
    assert!(
        uniform >= own - 1e-9 && uniform < own + 8.0 / 160.0,
        "{uniform} for {own}"
    );
    assert!(
        within <= own + 1e-9 && within > own - 1.0 / 6.0,
        "{within} for {own}"
    );
    assert!((density(&format!("{duo}:1.0")) - 32.0 / 160.0).abs() < 1e-9);
    // Every rule of the reference's is at its least span here, sink and block of 64 each.
    assert!((density(&reference) - 128.0 / 160.0).abs() < 1e-9);
    let bytes = |method: &str| {
        let mut of = document["methods"].as_array().unwrap().iter();
        of.find(|one| one["method"] == method && one["context"] == 160)
            .unwrap()["kv_bytes"]
            .as_f64()
            .unwrap()
    };
    assert!(bytes("dense-kv8") < 0.7 * bytes("dense"));

    // A second run reads every row; half a line at the end is written again.
    let first = std::fs::read_to_string(&rows).unwrap();
    assert_eq!(first.lines().count(), 3 * 2 * 7 * 3);
    std::fs::write(&rows, &first[..first.len() - 40]).unwrap();
    let again = moa(args.iter().chain(&["--json"]));
    let said = stderr(&again);
    assert!(
        said.contains(&format!("{} trials were run before", 3 * 2 * 7 * 3 - 1)),
        "{said}"
    );
    let again: Value = serde_json::from_str(&ok(&again)).unwrap();
    assert_eq!(again, document);
    assert_eq!(
        std::fs::read_to_string(&rows).unwrap().lines().count(),
        3 * 2 * 7 * 3
    );
    let tables = ok(&moa(args));
    assert!(tables.starts_with("| suite | length | method |"));

    let page = folder.join("report.html");
    ok(&moa([
        "report",
        plan,
        rows.to_str().unwrap(),
        "--out",
        page.to_str().unwrap(),
    ]));
    let html = std::fs::read_to_string(page).unwrap();
    for part in [
        "<figure id=\"spans-plan\">",
        "quality-perplexity",
        "dense-kv8",
    ] {
        assert!(html.contains(part), "{part}");
    }
}

#[test]
fn what_cannot_be_evaluated_is_said() {
    let model = tiny();
    let model = model.to_str().unwrap();
    for (args, says) in [
        (&["--suites=passkey"][..], "no tokenizer"),
        (&["--suites=nonsense"], "there is no suite"),
        (&["--suites=kl", "--methods=uniform"], "has no budget"),
        (&["--suites=kl", "--methods=uniform:2"], "kv_density 2"),
        (
            &["--suites=kl", "--methods=duo:/nonexistent"],
            "/nonexistent",
        ),
        (
            &["--suites=longbench:/nonexistent.jsonl"],
            "/nonexistent.jsonl",
        ),
        (
            &["--suites=agreement", "--lengths=64", "--context=70"],
            "does not hold",
        ),
    ] {
        let said = refused(&moa(["eval", model].iter().chain(args)));
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

#[test]
fn a_search_in_steps_keeps_the_best_plan_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let calibration = folder.join("a.jsonl");
    write_ids_calibration(&calibration, 12, 192, 1);
    let model = tiny();
    let run = |out: &str, more: &[&str]| -> Value {
        let (out, trace) = (folder.join(out), folder.join(format!("{out}.trace")));
        let mut args = vec![
            "search",
            model.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
            "--calibration",
            calibration.to_str().unwrap(),
            "--lengths=128,192",
            "--samples=1",
            "--held-out=2",
            "--context=192",
            "--sink=16",
            "--block=16",
            "--density=0.4",
            "--trace",
            trace.to_str().unwrap(),
        ];
        args.extend(more);
        json(&args)
    };
    let steps = run("one.json", &["--steps=2", "--rounds=1"]);
    let found = &steps["plans"][0];
    let losses: Vec<(f64, f64, bool)> = found["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            (
                step["density"].as_f64().unwrap(),
                step["measured"]["loss"].as_f64().unwrap(),
                step["accepted"].as_bool().unwrap(),
            )
        })
        .collect();
    assert!(losses.len() >= 3, "{losses:?}");
    let within = losses.iter().filter(|(density, _, _)| *density <= 0.4);
    let least = within
        .map(|(_, loss, _)| *loss)
        .fold(f64::INFINITY, f64::min);
    assert_eq!(found["measured"]["loss"].as_f64(), Some(least));
    for density in found["report"]["kv_density"].as_object().unwrap().values() {
        assert!(density.as_f64().unwrap() <= 0.4 + 1e-9);
    }
    run("two.json", &["--steps=2", "--rounds=1"]);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read("one.json"), read("two.json"), "same inputs, same plan");
    assert_eq!(read("one.json.trace").lines().count(), losses.len());

    let front = run("front.json", &["--search=front"]);
    assert!(front["plans"][0]["measured"]["task"].is_number());
    let left: Vec<String> = names(folder)
        .into_iter()
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "nothing temporary stays: {left:?}");
    let page = folder.join("report.html");
    ok(&moa([
        "report",
        folder.join("one.json").to_str().unwrap(),
        folder.join("one.json.trace").to_str().unwrap(),
        "--out",
        page.to_str().unwrap(),
        "--figures",
        folder.join("figures").to_str().unwrap(),
    ]));
    assert!(names(&folder.join("figures")).contains(&"spans-moa-40.svg".to_owned()));
}

#[test]
fn a_study_ranks_every_estimator() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let calibration = folder.join("a.jsonl");
    write_ids_calibration(&calibration, 4, 128, 1);
    let (calibration, profile) = (calibration.to_str().unwrap(), folder.join("p.safetensors"));
    let (model, profile) = (tiny(), profile.to_str().unwrap());
    let model = model.to_str().unwrap();
    ok(&moa([
        "profile",
        model,
        "--out",
        profile,
        "--calibration",
        calibration,
        "--lengths=128",
        "--samples=2",
        "--sink=16",
        "--block=16",
    ]));
    let rows = folder.join("plans.jsonl");
    let document = json(&[
        "study",
        model,
        profile,
        "--calibration",
        calibration,
        "--plans=12",
        "--samples=2",
        "--density=0.5",
        "--trials-out",
        rows.to_str().unwrap(),
    ]);
    let plans = document["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 12);
    for plan in plans {
        assert!(
            (plan["kv_density"].as_f64().unwrap() - 0.5).abs() < 0.08,
            "{plan}"
        );
    }
    let signed = document["ranked"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["estimator"] == "joint-signed" && one["of"] == "task")
        .unwrap();
    assert!(signed["spearman"].as_f64().unwrap().abs() <= 1.0);
    assert_eq!(std::fs::read_to_string(rows).unwrap().lines().count(), 12);
}
