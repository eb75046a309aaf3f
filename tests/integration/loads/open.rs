//! `evalpool load --rate`: evaluations are due at times of their own, and latency counts from then.

use serde_json::{Value, json};

use super::load;
use crate::{
    program::{Folder, printed, refusal, run},
    support::wasm,
};

/// Sleeps for 50 ms.
const SLEEPS: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "run")
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 50000000))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;

fn count(report: &Value, which: &str) -> u64 {
    report["open_loop"][which].as_u64().unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn as_many_are_due_as_the_rate_says_and_none_is_lost() {
    let due = |seed: &str| {
        let report = load(&["--evaluators", "4", "--rate", "300", "--duration", "1s", "--seed", seed]);
        assert_eq!(report["errors"], json!({}), "{report}");
        let [due, late, not_begun] = ["due", "late", "not_begun"].map(|which| count(&report, which));
        assert_eq!(report["evaluations"].as_u64(), Some(due - not_begun), "{report}");
        assert!(not_begun <= late && late <= due, "{report}");
        due
    };
    let [one, again, other] = [due("1"), due("1"), due("2")];
    assert_eq!(one, again, "the same seed is the same load");
    assert_ne!(one, other);
    // More than ten times the standard deviation of a Poisson distribution.
    assert!((100..=500).contains(&one) && (100..=500).contains(&other), "{one}, {other}");
}

#[test]
fn a_stall_counts_in_the_latency_of_all_that_it_delays() {
    let folder = Folder::new();
    let sleeps = folder.file("sleeps.wasm", wasm(SLEEPS));
    let slow = ["--plugin", &sleeps, "--entry", "run", "--evaluators", "1", "--concurrency", "1", "--duration", "2s"];
    // A hundred a second are due, and at most twenty can be done. Who waits before each call sees 50 ms.
    let report = load(&[&slow[..], &["--rate", "100", "--seed", "1"]].concat());
    assert_eq!(report["errors"], json!({}), "{report}");
    let [due, late, not_begun] = ["due", "late", "not_begun"].map(|which| count(&report, which));
    assert!(report["evaluations"].as_u64().unwrap() <= 41, "one at a time: {report}");
    assert!(not_begun > due / 2 && late >= not_begun, "{report}");
    let latency = |quantile: &str| report["latency_us"][quantile].as_f64().unwrap();
    assert!(latency("p50") > 400_000.0 && latency("p99") > 1_000_000.0, "{report}");
}

#[test]
fn a_flood_is_beside_those_who_are_due() {
    let report = load(&[
        "--evaluators",
        "4",
        "--customers",
        "2",
        "--flooding",
        "1",
        "--concurrency",
        "2",
        "--rate",
        "50",
        "--duration",
        "1s",
    ]);
    assert_eq!(report["others"]["evaluations"].as_u64(), Some(count(&report, "due") - count(&report, "not_begun")));
    assert!(report["flooding"]["evaluations"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_table_tells_how_many_were_late() {
    let text = printed(&run(&["load", "--rate", "100", "--evaluators", "2", "--duration", "300ms"]));
    assert!(text.contains("\nopen loop     ") && text.contains(" of them late, "), "{text}");
}

#[test]
fn a_rate_that_cannot_be_is_refused() {
    for (arguments, said) in
        [(&["--rate", "0"][..], "--rate"), (&["--rate", "1e9"], "--rate"), (&["--rate", "10", "--chaos"], "--chaos")]
    {
        let line = refusal(&run(&[&["load"], arguments].concat()), 2);
        assert!(line.contains(said), "{arguments:?}: {line} lacks {said}");
    }
}
