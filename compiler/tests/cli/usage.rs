//! Help, version and mistyped options.

use crate::{moa, stderr, stdout};

#[test]
fn help_is_data_and_ends_well() {
    let output = moa(["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for command in [
        "build", "profile", "solve", "inspect", "verify", "generate", "logits", "eval", "search",
        "study", "report",
    ] {
        assert!(
            stdout(&output).contains(command),
            "{command} is not in --help"
        );
        let help = moa([command, "--help"]);
        assert_eq!(help.status.code(), Some(0), "{command} --help");
        assert!(stdout(&help).contains("Usage:"));
    }
}

#[test]
fn usage_errors_are_the_users() {
    for args in [
        &["no-such-command"][..],
        &["build"],
        &["solve", "x", "--density", "much"],
        &[],
    ] {
        let output = moa(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stdout(&output).is_empty(), "standard output is for data");
        assert!(!stderr(&output).is_empty());
    }
}

#[test]
fn json_failures_are_one_document() {
    let output = moa(["--json", "verify", "/nonexistent/bundle"]);
    assert_eq!(output.status.code(), Some(1));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["error"]["exit_code"], 1);
    assert!(
        document["error"]["message"]
            .as_str()
            .unwrap()
            .contains("/nonexistent/bundle")
    );
}
