//! `evalpool load`: it keeps its bounds, makes no errors, leaves nothing, and measures what it says.

mod customers;
mod open;
mod trace;

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use evalpool::Digest;
use serde_json::{Value, json};

use crate::{
    program::{Folder, printed, refusal, run},
    service::{eventually, program},
    support::{TEXT, process::catches},
};

/// A short load's report, and whatever holds of every one.
fn load(arguments: &[&str]) -> Value {
    let output = run(&[&["load", "--json"], arguments].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one object on one line: {text}{error}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}: {error}");
    assert_eq!(error, "", "nothing but the object, off a terminal");

    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer}"));
    assert_eq!(report["metrics_agree"], true, "{report}");
    assert!(number("/evaluations") > 0.0 && number("/per_second") > 0.0, "{report}");
    let latencies = ["p50", "p90", "p99", "p999", "max"].map(|quantile| number(&format!("/latency_us/{quantile}")));
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{report}");
    assert!(number("/runtimes/live_max") >= 1.0, "{report}");
    assert!(number("/runtimes/live_max") <= number("/runtimes/capacity"), "{report}");
    assert_eq!(report["runtimes"]["live_end_after_close"], 0, "{report}");
    assert_eq!(report["runtimes"]["built"], report["runtimes"]["closed"], "{report}");
    assert!(number("/runtimes/evicted") <= number("/runtimes/closed"), "{report}");
    assert!(number("/rss_mib/max") >= number("/rss_mib/start").max(1.0), "{report}");
    assert!(number("/rss_mib/end") > 0.0 && number("/seed") >= 0.0, "{report}");
    assert!((0.0..=1.0).contains(&number("/hit_ratio")), "{report}");
    report
}

#[test]
fn a_load_keeps_the_bound_makes_no_errors_and_leaves_nothing() {
    let report = load(&["--evaluators", "100", "--capacity", "4", "--concurrency", "16", "--duration", "1s"]);
    assert_eq!(report["errors"], json!({}), "{report}");
    assert_eq!(report["runtimes"]["capacity"], 4);
    assert!(report["runtimes"]["evicted"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_load_that_is_told_to_end_reports_what_it_did_and_leaves_nothing() {
    for (signal, number, engine) in [("TERM", 15, &["extism", "--trusted"][..]), ("INT", 2, &["direct"])] {
        let mut child = program()
            .args(["load", "--json", "--tenants", "50", "--capacity", "4", "--duration", "10m", "--engine"])
            .args(engine)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it listens for the signal", || {
            assert_eq!(child.try_wait().unwrap(), None, "it has ended");
            catches(child.id(), number)
        });
        // Whenever the signal comes, it is in the middle of a load, or of its beginning.
        std::thread::sleep(Duration::from_millis(500));
        let status = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status().unwrap();
        assert!(status.success());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["runtimes"]["live_end_after_close"], 0, "{report}");
        assert_eq!(report["runtimes"]["built"], report["runtimes"]["closed"], "{report}");
        assert_eq!(report["metrics_agree"], true, "{report}");
    }
}

#[test]
fn a_load_of_few_evaluators_finds_them_live() {
    let report = load(&[
        "--tenants",
        "2",
        "--capacity",
        "4",
        "--concurrency",
        "2",
        "--isolation",
        "reuse",
        "--seed",
        "7",
        "--duration",
        "1s",
    ]);
    assert_eq!((&report["errors"], &report["seed"]), (&json!({}), &json!(7)));
    assert_eq!(report["runtimes"]["built"], 2);
    // Five evaluations would do, of the thousands that there are in a second.
    assert!(report["hit_ratio"].as_f64().unwrap() > 0.5, "{report}");
}

#[test]
fn a_load_runs_whatever_plugin_it_is_given() {
    let folder = Folder::new();
    let text = folder.file("text.wasm", TEXT);
    let report = load(&[
        "--plugin",
        &text,
        "--entry",
        "upper",
        "--input",
        "abc",
        "--tenants",
        "3",
        "--skew",
        "0",
        "--duration",
        "1s",
    ]);
    assert_eq!(report["errors"], json!({}), "{report}");
    // One that fails is counted, and is a failure of the whole.
    let output =
        run(&["load", "--json", "--duration", "200ms", "--plugin", &text, "--entry", "fail", "--tenants", "2"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report["errors"]["guest_error"], report["evaluations"]);
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: guest_error "));
}

#[test]
fn a_load_compiles_a_plugin_for_each_evaluator_unless_all_have_the_same() {
    let folder = Folder::new();
    let text = folder.file("text.wasm", TEXT);
    let digest = Digest::of(TEXT).to_string();
    let of_its_own = ["--plugin", &text, "--entry", "upper", "--digest", &digest];
    let code = |name: &str| fs::read_dir(folder.path(name)).map_or(0, std::iter::Iterator::count);
    for (name, plugin, same, compiled) in [
        ("each", &[][..], &[][..], 3),
        ("all", &[], &["--same"], 1),
        ("each-given", &of_its_own, &[], 3),
        ("all-given", &of_its_own, &["--same"], 1),
    ] {
        let path = folder.path(name);
        let few = ["--evaluators", "3", "--skew", "0", "--seed", "7", "--duration", "200ms"];
        let cache = ["--code-cache", path.to_str().unwrap()];
        let report = load(&[plugin, same, &few[..], &cache].concat());
        assert_eq!((&report["errors"], code(name)), (&json!({}), compiled), "{name}: {report}");
    }
}

#[test]
fn the_code_cache_that_a_load_names_is_the_one_that_is_used() {
    let folder = Folder::new();
    let set = folder.path("set");
    let load = |code_cache: &str| {
        let mut load = program();
        load.args(["load", "--json", "--duration", "100ms", "--code-cache", code_cache]);
        load.env("EVALPOOL_ENGINE_CODE_CACHE", &set).output().unwrap()
    };
    for code_cache in ["off", "memory"] {
        let output = load(code_cache);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!set.exists(), "{code_cache}");
    }
    let open = folder.file("file", b"");
    let output = load(&open);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains(&open), "it is told which");
}

#[test]
#[ignore = "slow lane: chaos, which takes its time"]
fn chaos_leaves_nothing_and_breaks_nothing() {
    let report = load(&["--chaos", "--tenants", "20", "--capacity", "4", "--concurrency", "16", "--duration", "3s"]);
    let acts = ["left", "bad_plugins", "unloaded", "closed"].map(|act| report["chaos"][act].as_u64().unwrap());
    assert!(acts.iter().sum::<u64>() > 0, "{report}");
    assert_eq!(report["left_after_close"], 0);
    assert_eq!(report["unexpected"], json!({}));
    assert_eq!(report["errors"]["cancelled"], report["chaos"]["left"]);
}

#[test]
fn a_table_says_the_same_to_people() {
    let output = run(&["load", "--duration", "300ms", "--tenants", "5", "--concurrency", "4", "--seed", "1"]);
    let text = printed(&output);
    assert_eq!(output.stderr, b"");
    for line in
        ["seed          1\n", "errors        none\n", "of 16 at once, 0 after the close\n", "metrics       agree\n"]
    {
        assert!(text.contains(line), "{text} lacks {line:?}");
    }
    let (_, histogram) = text.split_once("\nlatency\n").unwrap();
    let evaluations: u64 = text.lines().find_map(|line| line.strip_prefix("evaluations   ")).and_then(number).unwrap();
    let counts: Vec<u64> =
        histogram.lines().map(|line| line.split_whitespace().nth(3).and_then(number).unwrap()).collect();
    assert_eq!(counts.iter().sum::<u64>(), evaluations, "{text}");
    assert!(histogram.contains(&"#".repeat(50)), "{text}");
}

/// The number that a text begins with.
fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The lines of a file that `--csv` wrote, as numbers; none where a field is empty.
fn figures(path: &str) -> Vec<Vec<Option<f64>>> {
    let text = fs::read_to_string(path).unwrap();
    let (columns, lines) = text.split_once('\n').unwrap();
    assert_eq!(columns, "second,evaluations,errors,p50_us,p99_us,live_runtimes,rss_mib");
    let field = |field: &str| (!field.is_empty()).then(|| field.parse().unwrap());
    lines.lines().map(|line| line.split(',').map(field).collect()).collect()
}

#[test]
fn figures_of_each_second_add_up_to_the_whole() {
    let folder = Folder::new();
    let (path, text) = (folder.file("figures.csv", "of another run"), folder.file("text.wasm", TEXT));
    let report = load(&["--evaluators", "5", "--capacity", "4", "--duration", "2500ms", "--csv", &path]);
    let lines = figures(&path);
    let sum = |column: usize| lines.iter().map(|line| line[column].unwrap()).sum::<f64>();
    assert!(lines.len() >= 3, "{lines:?}");
    for (second, line) in lines.iter().enumerate() {
        assert_eq!(line[0], Some(second as f64), "{lines:?}");
        assert!(line[3] <= line[4] && line[3].is_some() == (line[1] > Some(0.0)), "{lines:?}");
        assert!(line[5] <= Some(4.0) && line[6] > Some(1.0), "{lines:?}");
    }
    assert_eq!((Some(sum(1)), sum(2)), (report["evaluations"].as_f64(), 0.0));

    // Where nothing succeeds, there is no latency.
    let output = run(&["load", "--json", "--duration", "1s", "--plugin", &text, "--entry", "fail", "--csv", &path]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = figures(&path);
    let sum = |column: usize| Some(lines.iter().map(|line| line[column].unwrap()).sum::<f64>());
    assert_eq!((sum(1), sum(2)), (report["evaluations"].as_f64(), report["evaluations"].as_f64()));
    assert!(lines.iter().all(|line| line[3..5] == [None, None]), "{lines:?}");

    let nowhere = folder.path("no/where.csv");
    let line = refusal(&run(&["load", "--csv", nowhere.to_str().unwrap()]), 2);
    assert!(line.starts_with("--csv: cannot write ") && line.contains("where.csv"), "{line}");
}
