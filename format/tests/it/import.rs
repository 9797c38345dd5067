//! Plans of other programs.

use moa_format::{FormatError, ImportOptions, ModelConfig, Plan};
use moa_mask::{HeadRule, MaskGrid};

use crate::fixture::{config, plan};

fn import(json: &str) -> Result<Plan, FormatError> {
    Plan::import(json, ImportOptions::new("imported", &config()))
}

fn elastic(alpha: f64, beta: f64) -> HeadRule {
    HeadRule::Elastic { alpha, beta }
}

#[test]
fn query_heads_give_their_group_the_widest_span_at_the_longest_length() {
    // 4 query heads on 2 KV heads: heads 0 and 1 share the first. At 3000 tokens (0, .5) gives 1536 and
    // (1024, 0) gives 1024; at 1000 tokens it is the other way round.
    let json = r#"{"alphas": [[0, 1024, -1024, 0], [0, 0, 8192, 0]],
                   "betas": [[0.5, 0, 1, 0.25], [0.25, 0.5, 0, 1]]}"#;
    let plan = import(json).unwrap();
    assert_eq!((plan.sink, plan.block), (64, 64));
    assert_eq!(plan.rules[0], [elastic(0.0, 0.5), elastic(-1024.0, 1.0)]);
    assert_eq!(
        plan.rules[1],
        [elastic(0.0, 0.5), elastic(8192.0, 0.0)],
        "the first of equals"
    );
    let config = config();
    let short = ImportOptions {
        longest: 1000,
        ..ImportOptions::new("short", &config)
    };
    let plan = Plan::import(json, short).unwrap();
    assert_eq!(plan.rules[0], [elastic(1024.0, 0.0), elastic(0.0, 0.25)]);
    assert_eq!(plan.name, "short");
}

#[test]
fn kv_heads_are_taken_as_they_are() {
    let plan = import(r#"{"alphas": [[0, 1], [2, 3]], "betas": [[0, 0.5], [1, 0.25]]}"#).unwrap();
    assert_eq!(plan.rules[0], [elastic(0.0, 0.0), elastic(1.0, 0.5)]);
    assert_eq!(plan.rules[1], [elastic(2.0, 1.0), elastic(3.0, 0.25)]);
}

#[test]
fn exact_spans_are_not_rounded() {
    let plan = import(r#"{"sink": 8, "spans": [[9, 100], [17, 4000]]}"#).unwrap();
    assert_eq!((plan.sink, plan.block), (8, 1));
    let masks = plan.masks(50).unwrap();
    assert_eq!(masks.layer(0)[0].window, 1);
    assert_eq!(masks.layer(0)[1].span(), 100);
    let with_block = import(r#"{"sink": 8, "block": 4, "spans": [[9, 100], [17, 4000]]}"#).unwrap();
    assert_eq!(with_block.grid().unwrap(), MaskGrid::new(8, 4).unwrap());
    assert_eq!(with_block.rules, plan.rules, "the block does not round");
}

#[test]
fn our_own_json_is_imported_with_its_name() {
    assert_eq!(import(&plan().to_json().unwrap()).unwrap(), plan());
    let newer = plan().to_json().unwrap().replace("n\": 1", "n\": 2");
    assert!(matches!(
        import(&newer),
        Err(FormatError::NewerVersion { .. })
    ));
    assert!(matches!(
        import(r#"{"version": 2, "something": 1}"#),
        Err(FormatError::NewerVersion { .. })
    ));
}

#[test]
fn wrong_shapes_and_values_are_refused() {
    for (json, what) in [
        (r#"{"alphas": [[0, 0]], "betas": [[0, 0]]}"#, "layers"),
        (
            r#"{"alphas": [[0, 0], [0, 0]], "betas": [[0, 0]]}"#,
            "layers",
        ),
        (
            r#"{"alphas": [[0, 0, 0], [0, 0]], "betas": [[0, 0, 0], [0, 0]]}"#,
            "4 query heads and 2 kv_heads",
        ),
        (
            r#"{"alphas": [[0, 0], [0, 0]], "betas": [[0, 0, 0, 0], [0, 0]]}"#,
            "betas in layer 0",
        ),
        (
            r#"{"alphas": [[0, 0, 0, 0], [0, 0]], "betas": [[0, 0, 0, 0], [0, 0]]}"#,
            "",
        ),
        (
            r#"{"alphas": [[0, 0], [0, 0]], "betas": [[0, 0], [0, 1.5]]}"#,
            "layer 1 head 1",
        ),
        (
            r#"{"alphas": [[0, 0], [0, null]], "betas": [[0, 0], [0, 0]]}"#,
            "readable",
        ),
        (r#"{"sink": 8, "spans": [[9, 9]]}"#, "layers"),
        (r#"{"sink": 8, "spans": [[9], [9]]}"#, "kv_heads"),
        (
            r#"{"sink": 8, "spans": [[9, 9], [9]]}"#,
            "kv_heads in layer 1",
        ),
        (
            r#"{"sink": 8, "spans": [[9, 9], [9, 8]]}"#,
            "layer 1 kv_head 1",
        ),
        (r#"{"sink": 8, "spans": [[9, 9], [9, -8]]}"#, "readable"),
        (
            r#"{"sink": 8, "block": 3, "spans": [[9, 9], [9, 9]]}"#,
            "sink",
        ),
        (
            r#"{"sink": 8, "block": 0, "spans": [[9, 9], [9, 9]]}"#,
            "block",
        ),
        (r#"{"spans": [[9, 9], [9, 9]]}"#, "no plan"),
        (r#"{"alphas": [[0, 0], [0, 0]]}"#, "no plan"),
        ("{}", "no plan"),
        ("[]", "no plan"),
        ("3", "no plan"),
        ("", "readable"),
    ] {
        match import(json) {
            Err(error) => assert!(error.to_string().contains(what), "{json}: {error}"),
            Ok(_) => assert!(what.is_empty(), "{json} was read"),
        }
    }
}

#[test]
fn multi_head_models_need_no_grouping() {
    let config = ModelConfig {
        kv_heads: 4,
        ..config()
    };
    let json = r#"{"alphas": [[0, 1, 2, 3], [0, 0, 0, 0]], "betas": [[0, 0, 0, 0], [1, 1, 1, 1]]}"#;
    let plan = Plan::import(json, ImportOptions::new("mha", &config)).unwrap();
    assert_eq!(plan.rules[0][3], elastic(3.0, 0.0));
}
