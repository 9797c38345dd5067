//! Bundles in folders as `moa-run` opens them: plans by name and by file, and every kind of damage.

#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share may unwrap as tests do"
)]

use std::path::{Path, PathBuf};

use moa_format::{DType, MANIFEST_FILE, plan_entry};
use moa_runtime_web::bundle::{Bundle, BundleError};
use moa_runtime_web::{EngineOptions, GpuOptions, Request, Sampler, generate};
use moa_tests::tiny::{self, TinyModel};
use pollster::block_on;

fn model() -> TinyModel {
    let config = tiny::config(3, 3);
    let plan = tiny::plan(&config, 8, &[24, 1024, 40]);
    TinyModel::new(config, plan, DType::Q4, DType::F32, 21)
}

/// Writes the bundle to `folder` as the compiler does.
fn write(model: &TinyModel, folder: &Path) {
    let bundle = &model.bundle;
    let (entry, plan) = plan_entry(&bundle.plan, model.config()).unwrap();
    std::fs::write(folder.join(entry.file), plan).unwrap();
    std::fs::write(
        folder.join(MANIFEST_FILE),
        bundle.manifest.to_json().unwrap(),
    )
    .unwrap();
    for (shard, data) in bundle.manifest.weights.shards.iter().zip(&bundle.shards) {
        std::fs::write(folder.join(&shard.file), data).unwrap();
    }
}

fn tokens(folder: &Path, plan: Option<&str>) -> Result<Vec<u32>, BundleError> {
    let bundle = Bundle::open(folder)?;
    let plan = bundle.plan(plan)?;
    let mut engine = block_on(bundle.engine(
        bundle.setup(plan, 200)?,
        GpuOptions::default(),
        EngineOptions::default(),
    ))?;
    let prompt: Vec<u32> = (0..150).map(|id| id * 37 % 300).collect();
    let request = Request {
        prompt: &prompt,
        max_tokens: 8,
        stop: &[],
        batch: 8,
    };
    let generated = block_on(generate(&mut engine, &request, &Sampler::greedy(), |_| {
        true
    }))?;
    Ok(generated.tokens)
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn plans_are_found_by_name_and_by_file() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    write(&model, folder.path());
    let by_default = tokens(folder.path(), None).unwrap();
    assert_eq!(by_default.len(), 8);
    assert_eq!(
        tokens(folder.path(), Some("tiny")).unwrap(),
        by_default,
        "by its name"
    );
    let json = folder.path().join("people.json");
    std::fs::write(&json, model.bundle.plan.to_json().unwrap()).unwrap();
    let spans = r#"{"sink": 8, "spans": [[24, 1024, 40], [24, 1024, 40], [24, 1024, 40]]}"#;
    let imported = folder.path().join("imported.json");
    std::fs::write(&imported, spans).unwrap();
    for file in [&json, &imported, &folder.path().join("plan-tiny.bin")] {
        assert_eq!(
            tokens(folder.path(), file.to_str()).unwrap(),
            by_default,
            "{}",
            file.display()
        );
    }
    assert_eq!(tokens(folder.path(), Some("dense")).unwrap().len(), 8);
    assert!(matches!(
        tokens(folder.path(), Some("nowhere")),
        Err(BundleError::UnknownPlan { .. })
    ));
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn any_flipped_bit_is_found() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    write(&model, folder.path());
    let files: [(&str, &[&str]); 3] = [
        (MANIFEST_FILE, &["bad-manifest"]),
        ("plan-tiny.bin", &["bad-plan"]),
        ("weights-000.bin", &["hash-mismatch"]),
    ];
    for (file, codes) in files {
        let path: PathBuf = folder.path().join(file);
        let good = std::fs::read(&path).unwrap();
        for part in 0..4 {
            let mut damaged = good.clone();
            damaged[(good.len() - 1) * part / 3] ^= 4;
            std::fs::write(&path, &damaged).unwrap();
            let error = tokens(folder.path(), None).unwrap_err();
            let BundleError::Engine(error) = error else {
                panic!("{file}: {error}")
            };
            assert!(codes.contains(&error.code()), "{file}: {error}");
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(
            tokens(folder.path(), None).is_err(),
            "{file}: half of it passed"
        );
        std::fs::remove_file(&path).unwrap();
        assert!(
            matches!(tokens(folder.path(), None), Err(BundleError::File { .. })),
            "{file}: missing"
        );
        std::fs::write(&path, &good).unwrap();
    }
    assert!(
        tokens(folder.path(), None).is_ok(),
        "the control: undamaged it works"
    );
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn a_lost_device_is_a_typed_error() {
    let model = model();
    let mut engine = model.engine(64, EngineOptions::default());
    block_on(engine.prefill(&[1, 2, 3])).unwrap();
    engine.gpu().device().destroy();
    let error = block_on(engine.prefill(&[4])).unwrap_err();
    assert_eq!(error.code(), "device-lost", "{error}");
    assert!(engine.gpu().lost().is_some());
    assert_eq!(
        block_on(engine.decode(1)).unwrap_err().code(),
        "device-lost",
        "and stays so"
    );
}
