//! The alerts, and what Prometheus is told of them.

use std::collections::BTreeSet;

use super::{
    JOB, Series, TARGET,
    check::check,
    exposed, owned,
    panels::{dashboards, titles},
    read,
};

/// The values of `expr:` in a YAML text: on the line itself, or a block (`|`) below it.
fn expressions(yaml: &str) -> Vec<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<_> = yaml.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        match line.trim_start().strip_prefix("expr:").map(str::trim) {
            None => {}
            Some("|") => {
                let block = lines[at + 1..].iter().take_while(|below| below.is_empty() || depth(below) > depth(line));
                found.push(block.map(|line| line.trim()).collect::<Vec<_>>().join("\n"));
            }
            Some(expression) => found.push(expression.to_owned()),
        }
    }
    found
}

#[test]
fn expressions_are_found_on_a_line_and_in_a_block() {
    let yaml = "rules:\n  - alert: A\n    expr: up == 0\n  - alert: B\n    expr: |\n      a\n      > 1\n    for: 5m\n";
    assert_eq!(expressions(yaml), ["up == 0", "a\n> 1"]);
}

/// The recording rules: what each records, and by which expression.
fn recorded() -> Vec<(String, String)> {
    let yaml = read("config/rules.yml");
    let names = yaml.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).map(str::to_owned);
    let rules: Vec<_> = names.zip(expressions(&yaml)).collect();
    assert_eq!(rules.len(), yaml.matches("expr:").count());
    rules
}

/// All that alerts may ask for.
fn exposed_and_recorded() -> BTreeSet<Series> {
    exposed().into_iter().chain(recorded().into_iter().map(|(name, _)| Series::new(name, &[]))).collect()
}

/// Every query of the rules and alerts.
pub(super) fn queries() -> Vec<String> {
    let recorded = recorded().into_iter().map(|(_, expression)| expression);
    recorded.chain(expressions(&read("config/alerts.yml"))).collect()
}

pub(super) fn recorded_names() -> impl Iterator<Item = String> {
    recorded().into_iter().map(|(name, _)| name)
}

/// Each alert's name and text.
fn alerts(yaml: &str) -> Vec<(&str, &str)> {
    yaml.split("- alert:").skip(1).map(|rule| (rule.lines().next().unwrap_or_default().trim(), rule)).collect()
}

#[test]
fn every_rule_and_alert_asks_for_what_exists() {
    let exposed = exposed_and_recorded();
    assert_eq!(expressions(&read("config/alerts.yml")).len(), read("config/alerts.yml").matches("- alert:").count());
    for expression in &queries() {
        let checked = check(&exposed, expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        // Else the text of the alert could not name the instance.
        assert_eq!(checked.labels, owned(&TARGET), "labels of {expression}");
    }
}

#[test]
fn every_recorded_ratio_is_used() {
    let yaml = read("config/alerts.yml");
    for (name, _) in recorded() {
        assert!(yaml.contains(&name), "no alert asks for {name}");
    }
}

#[test]
fn every_alert_says_what_is_wrong_and_what_to_do_and_is_tested() {
    let (yaml, tested, runbook) = (read("config/alerts.yml"), read("config/alerts_test.yml"), read("RUNBOOK.md"));
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    for (name, rule) in alerts(&yaml) {
        for key in ["severity: ", "summary: ", "description: ", "action: "] {
            assert!(rule.contains(key), "{name} has no {key:?}");
        }
        let anchor = format!("{}/blob/main/RUNBOOK.md#{}\"", env!("CARGO_PKG_REPOSITORY"), name.to_lowercase());
        assert!(rule.contains(&format!("runbook_url: \"{anchor}")), "{name} leads to its section of RUNBOOK.md");
        let alone = tested.split("\n  - interval:").find(|test| test.contains(&format!("\n    name: {name}\n")));
        let alone = alone.unwrap_or_else(|| panic!("config/alerts_test.yml does not try {name} alone"));
        assert!(alone.contains("instance=\"a\"}'\n            value: 1"), "{name} fires");
        assert!(alone.contains("exp_samples: []"), "{name} is over");
    }
    let names: Vec<_> = alerts(&yaml).into_iter().map(|(name, _)| name).collect();
    assert_eq!(sections, names, "RUNBOOK.md has a section for each alert, in their order");
}

#[test]
fn the_runbook_names_panels_and_sections_that_exist() {
    let runbook = read("RUNBOOK.md");
    let titles: BTreeSet<_> = dashboards().iter().flat_map(|(_, dashboard)| titles(dashboard)).collect();
    let prose: String = runbook.split('`').step_by(2).collect();
    let named: Vec<_> = prose.split('*').skip(1).step_by(2).map(|name| name.replace('\n', " ")).collect();
    assert!(named.len() > 10, "where are the panels?");
    for name in named {
        assert!(titles.contains(&name), "no panel is called {name:?}");
    }
    for link in runbook.split("](#").skip(1) {
        let anchor = link.split(')').next().unwrap_or_default();
        let is_there = runbook.lines().any(|line| line.to_lowercase() == format!("## {anchor}"));
        assert!(is_there, "no section {anchor:?}");
    }
}

#[test]
fn prometheus_scrapes_the_job_and_reads_the_alerts() {
    let yaml = read("config/prometheus.yml");
    for line in [
        format!("job_name: {JOB}"),
        "- rules.yml".to_owned(),
        "- alerts.yml".to_owned(),
        "metrics_path: /metrics".to_owned(),
    ] {
        assert!(
            yaml.lines().any(|found| found.trim().trim_start_matches("- ") == line.trim_start_matches("- ")),
            "{line}"
        );
    }
}
