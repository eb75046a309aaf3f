//! Prometheus's own parser reads every query of the dashboards.

use std::process::Command;

use serde_json::{Value, json};

use super::panels::queries;

/// Each query as a recording rule, which is what `promtool` checks.
#[test]
#[ignore = "slow lane: needs promtool, which .ci/run installs"]
fn prometheus_understands_every_query() {
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("skipped: there is no promtool on this machine");
        return;
    }
    let rules: Vec<Value> = queries()
        .iter()
        .enumerate()
        .map(|(number, query)| json!({"record": format!("query:{number}"), "expr": query}))
        .collect();
    assert!(rules.len() > 20, "where are the dashboards?");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    // Rules are YAML, of which JSON is a part.
    std::fs::write(&file, json!({"groups": [{"name": "dashboards", "rules": rules}]}).to_string()).unwrap();
    let checked = Command::new("promtool").args(["check", "rules"]).arg(&file).output().unwrap();
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&said));
}
