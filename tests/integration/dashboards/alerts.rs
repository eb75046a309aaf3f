//! The alerts, and what Prometheus is told of them.

use super::{JOB, TARGET, check::check, exposed, owned, read};

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

#[test]
fn every_alert_asks_for_what_exists() {
    let (yaml, exposed) = (read("config/alerts.yml"), exposed());
    let expressions = expressions(&yaml);
    assert_eq!(expressions.len(), yaml.matches("- alert:").count());
    for expression in &expressions {
        let checked = check(&exposed, expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        // Else the text of the alert could not name the instance.
        assert_eq!(checked.labels, owned(&TARGET), "labels of {expression}");
    }
}

#[test]
fn every_alert_says_what_is_wrong_and_is_tested() {
    let (yaml, tested) = (read("config/alerts.yml"), read("config/alerts_test.yml"));
    for rule in yaml.split("- alert:").skip(1) {
        let name = rule.lines().next().unwrap_or_default().trim();
        for key in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(key), "{name} has no {key:?}");
        }
        assert!(tested.contains(&format!("alertname=\"{name}\"")), "config/alerts_test.yml does not raise {name}");
    }
}

#[test]
fn prometheus_scrapes_the_job_and_reads_the_alerts() {
    let yaml = read("config/prometheus.yml");
    for line in [format!("job_name: {JOB}"), "- alerts.yml".to_owned(), "metrics_path: /metrics".to_owned()] {
        assert!(
            yaml.lines().any(|found| found.trim().trim_start_matches("- ") == line.trim_start_matches("- ")),
            "{line}"
        );
    }
}
