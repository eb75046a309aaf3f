//! `evalpool load --customers --flooding`: evaluators have owners, and a flood is told from the others.

use serde_json::json;

use super::{load, number};
use crate::program::{printed, refusal, run};

#[test]
fn the_others_are_counted_apart_from_a_flood() {
    let few = ["--evaluators", "12", "--capacity", "12", "--concurrency", "4", "--duration", "1s"];
    let report = load(&[&few[..], &["--customers", "4", "--flooding", "2"]].concat());
    assert_eq!((&report["errors"], &report["flooding"]["customers"]), (&json!({}), &json!(2)), "{report}");
    let parts = ["others", "flooding"].map(|part| {
        let part = &report[part];
        assert!(part["per_second"].as_f64().unwrap() > 0.0 && part["errors"] == json!({}), "{report}");
        let latencies = ["p50", "p99", "max"].map(|quantile| part["latency_us"][quantile].as_f64().unwrap());
        assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{report}");
        part["evaluations"].as_u64().unwrap()
    });
    assert!(parts.iter().all(|part| *part > 0), "{report}");
    assert_eq!(Some(parts.iter().sum()), report["evaluations"].as_u64());

    let report = load(&[&few[..], &["--customers", "4"]].concat());
    assert!(report.get("others").is_none() && report.get("flooding").is_none(), "{report}");
}

#[test]
fn a_table_shows_the_latency_of_the_others() {
    let text = printed(&run(&[
        "load",
        "--evaluators",
        "4",
        "--concurrency",
        "2",
        "--duration",
        "300ms",
        "--customers",
        "2",
        "--flooding",
        "1",
    ]));
    let of = |label: &str| text.lines().find_map(|line| line.strip_prefix(label)).and_then(number).unwrap();
    let (_, histogram) = text.split_once("\nlatency of the others\n").unwrap();
    let counts = histogram.lines().map(|line| line.split_whitespace().nth(3).and_then(number).unwrap());
    assert_eq!(counts.sum::<u64>(), of("of the others"), "{text}");
    assert!(of("of the flood") > 0, "{text}");
}

#[test]
fn customers_that_cannot_be_are_refused() {
    for (arguments, said) in [
        (&["--customers", "0"][..], "--customers"),
        (&["--customers", "201"], "--customers 201: each needs an evaluator, and --evaluators is 200"),
        (&["--flooding", "1"], "--customers"),
        (&["--customers", "9", "--flooding", "8", "--concurrency", "200000"], "over 1000000 would flood"),
        (&["--customers", "3", "--flooding", "3"], "--flooding 3: of 3 customers, one at least must not flood"),
    ] {
        let line = refusal(&run(&[&["load"], arguments].concat()), 2);
        assert!(line.contains(said), "{arguments:?}: {line} lacks {said}");
    }
}
