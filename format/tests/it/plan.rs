//! Plan JSON: round trips, golden text, refusals.

use moa_format::{FormatError, Plan};
use moa_mask::{HeadMask, HeadRule, MaskGrid};

use crate::fixture::{Random, config, plan};

const GOLDEN: &str = r#"{
  "version": 1,
  "name": "half",
  "sink": 64,
  "block": 64,
  "provenance": {
    "tool": "moa-compile 0.1.0",
    "seed": 7,
    "lengths": [1024, 2048],
    "budgets": {"2048": 0.5}
  },
  "rules": [
    [{"alpha": 0.0, "beta": 0.5}, {"alpha": -256.0, "beta": 0.875}],
    [{"span": 129}, {"alpha": 512.0, "beta": 0.0}]
  ]
}
"#;

#[test]
fn json_is_as_reviewed_and_reads_back() {
    assert_eq!(plan().to_json().unwrap(), GOLDEN);
    assert_eq!(Plan::from_json(GOLDEN).unwrap(), plan());
}

#[test]
fn a_person_may_leave_out_provenance_and_points() {
    let plan = Plan::from_json(
        r#"{"version":1,"name":"a","sink":0,"block":1,"rules":[[{"alpha":8,"beta":0}]]}"#,
    )
    .unwrap();
    assert_eq!(
        plan.rules[0][0],
        HeadRule::Elastic {
            alpha: 8.0,
            beta: 0.0
        }
    );
}

#[test]
fn every_double_comes_back_bit_for_bit() {
    let mut random = Random(3);
    let mut plan = plan();
    for _ in 0..2000 {
        let alpha = f64::from_bits(random.next());
        if !alpha.is_finite() {
            continue;
        }
        plan.rules[0][0] = HeadRule::Elastic {
            alpha,
            beta: random.unit(),
        };
        let back = Plan::from_json(plan.to_json().unwrap()).unwrap();
        assert_eq!(back.hash(), plan.hash(), "alpha {alpha:e}");
        assert_eq!(Plan::from_bin(&plan.to_bin().unwrap()).unwrap(), plan);
    }
}

#[test]
fn newer_versions_are_refused_with_a_sentence() {
    let newer = GOLDEN.replace("\"version\": 1", "\"version\": 2");
    let error = Plan::from_json(&newer).unwrap_err();
    assert!(matches!(
        error,
        FormatError::NewerVersion {
            got: 2,
            supported: 1,
            ..
        }
    ));
    assert!(error.to_string().contains("update"), "{error}");
    for version in ["0", "-1", "1.5", "\"1\"", "null"] {
        let wrong = GOLDEN.replace("\"version\": 1", &format!("\"version\": {version}"));
        assert!(Plan::from_json(&wrong).is_err(), "{version}");
    }
    // A newer file is newer even where its fields are unknown.
    assert!(matches!(
        Plan::from_json(r#"{"version": 9, "shape": []}"#),
        Err(FormatError::NewerVersion { got: 9, .. })
    ));
}

#[test]
fn wrong_plans_are_refused() {
    for (from, to) in [
        ("\"sink\": 64", "\"sink\": 63"),
        ("\"sink\": 64", "\"sink\": -1"),
        ("\"sink\": 64", "\"sink\": 4294967296"),
        ("\"block\": 64", "\"block\": 0"),
        ("\"name\": \"half\"", "\"name\": \"../half\""),
        ("\"name\": \"half\"", "\"name\": \"\""),
        ("\"beta\": 0.5", "\"beta\": 1.5"),
        ("\"beta\": 0.5", "\"beta\": null"),
        ("\"beta\": 0.5", "\"beta\": 0.5, \"span\": 3"),
        ("{\"span\": 129}, ", ""),
        ("{\"span\": 129}", "{\"span\": 64}"),
        ("{\"span\": 129}", "{\"window\": 129}"),
        ("\"sink\": 64", "\"sink\": 64, \"sinks\": 64"),
        ("-256.0", "1e999"),
    ] {
        assert!(GOLDEN.contains(from));
        let text = GOLDEN.replace(from, to);
        assert!(Plan::from_json(&text).is_err(), "{to}");
    }
    for text in ["", "{}", "[]", "null", "{\"version\": 1}", "\u{feff}"] {
        assert!(Plan::from_json(text).is_err(), "{text:?}");
    }
    assert!(Plan::from_json([0xff, 0xfe]).is_err());
    assert!(
        Plan::from_json("[".repeat(100_000)).is_err(),
        "deep nesting"
    );
}

#[test]
fn the_hash_knows_what_a_plan_does_and_nothing_else() {
    let plan = plan();
    let mut renamed = plan.clone();
    renamed.name = "other".into();
    renamed.provenance.seed = Some(8);
    assert_eq!(renamed.hash(), plan.hash());
    let change = |change: fn(&mut Plan)| {
        let mut changed = plan.clone();
        change(&mut changed);
        changed.hash()
    };
    let changed = [
        plan.hash(),
        change(|p| p.sink = 0),
        change(|p| p.block = 32),
        change(|p| p.rules[1][0] = HeadRule::Exact { span: 130 }),
        change(|p| {
            p.rules[0][0] = HeadRule::Elastic {
                alpha: 0.0,
                beta: 0.25,
            };
        }),
        change(|p| p.rules[1].swap(0, 1)),
        change(|p| p.rules = vec![p.rules.concat()]),
    ];
    for (index, hash) in changed.iter().enumerate() {
        assert!(!changed[..index].contains(hash), "{index}");
    }
    let zero = |alpha| {
        let mut plan = plan.clone();
        plan.rules[0][0] = HeadRule::Elastic { alpha, beta: 0.5 };
        plan.hash()
    };
    assert_eq!(zero(0.0), zero(-0.0));
    // Plans are known by this number in other files: it must not change by accident.
    assert_eq!(
        plan.hash(),
        "3d7ae43e738980724e349ad29e8ae90a128ef041727cbd9fec9ecdcd097da313"
    );
}

#[test]
fn masks_follow_the_rules() {
    let plan = plan();
    plan.check_model(&config()).unwrap();
    let masks = plan.masks(2048).unwrap();
    assert_eq!(masks.layer(0)[0], HeadMask::from_span(1024, 64));
    assert_eq!(masks.layer(0)[1], HeadMask::from_span(1536, 64));
    assert_eq!(masks.layer(1)[0], HeadMask::from_span(129, 64));
    assert!(plan.masks(0).is_err());
    let dense = Plan::dense(&config(), MaskGrid::default());
    dense.check_model(&config()).unwrap();
    let masks = dense.masks(3000).unwrap();
    assert!(masks.iter().all(|mask| mask.span() >= 3000));
}

#[test]
fn a_plan_for_another_model_is_refused_with_both_numbers() {
    let mut config = config();
    config.layers = 3;
    let error = plan().check_model(&config).unwrap_err().to_string();
    assert_eq!(error, "plan has 2 layers, the model has 3");
    config.layers = 2;
    config.kv_heads = 4;
    let error = plan().check_model(&config).unwrap_err().to_string();
    assert!(error.contains("kv_heads"), "{error}");
}
