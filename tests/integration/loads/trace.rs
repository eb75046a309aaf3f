//! `evalpool load --trace`: what a file says is called, and a line that cannot be is refused by its number.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::json;

use super::load;
use crate::{
    program::{Folder, refusal, run},
    support::wasm,
};

/// Traps unless its input has 300 bytes.
const MEASURES: &str = r#"(module
    (import "extism:host/env" "input_length" (func $length (result i64)))
    (func (export "run") (if (i64.ne (call $length) (i64.const 300)) (then unreachable))))"#;

fn traces() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces")
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_trace_is_replayed_line_by_line_compressed_or_not() {
    let folder = Folder::new();
    let small = traces().join("small.csv");
    let text = fs::read_to_string(&small).unwrap();
    let calls = text.lines().count() - 1;
    let (path, compressed) = (small.to_str().unwrap(), folder.file("small.csv.gz", gzip(text.as_bytes())));
    for trace in [path, &compressed] {
        let report = load(&["--trace", trace]);
        assert_eq!(report["errors"], json!({}), "{report}");
        assert_eq!(report["evaluations"], json!(calls), "{report}");
        assert_eq!((&report["open_loop"]["due"], &report["open_loop"]["not_begun"]), (&json!(calls), &json!(0)));
        // As long as the trace.
        assert!(report["seconds"].as_f64().unwrap() >= 1.3, "{report}");
        assert_eq!(report["runtimes"]["built"], 12, "each of its evaluators: {report}");
        // Also those that came while another had it built.
        assert_eq!(report["hit_ratio"].as_f64(), Some((calls - 12) as f64 / calls as f64), "{report}");
    }
}

#[test]
fn calls_after_the_duration_are_left_out() {
    let folder = Folder::new();
    let trace = folder.file("trace.csv", "7,a/x,1\n7,b/x,1\n1e9,a/x,1\n");
    let report = load(&["--trace", &trace, "--duration", "1m"]);
    assert_eq!((&report["evaluations"], &report["open_loop"]["due"]), (&json!(2), &json!(2)), "{report}");
}

#[test]
fn inputs_have_the_size_that_the_trace_says() {
    let folder = Folder::new();
    let measures = folder.file("measures.wasm", wasm(MEASURES));
    let trace = folder.file("trace.csv", "time,evaluator,input-size\n0,a,300\n0.01,b,300\r\n0.01,a,300");
    let report = load(&["--trace", &trace, "--plugin", &measures, "--entry", "run"]);
    assert_eq!((&report["errors"], &report["evaluations"]), (&json!({}), &json!(3)), "{report}");
    let trace = folder.file("other.csv", "0,a,299\n");
    let output = run(&["load", "--json", "--trace", &trace, "--plugin", &measures, "--entry", "run"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn a_line_that_cannot_be_is_refused_by_its_number() {
    let folder = Folder::new();
    let long = format!("0,{},1", "a".repeat(300));
    for (text, said) in [
        ("", "it has no calls"),
        ("time,evaluator,input-size\n", "it has no calls"),
        ("0,a,1\n0,a\n", "line 2: expected time,evaluator,input-size, such as 0.125,acme/rate,120"),
        ("0,a,1,2\n", "line 1: expected time,evaluator,input-size"),
        ("0,a,1\n\n0,a,1\n", "line 2: expected time,evaluator,input-size"),
        ("0,a,1\ntime,evaluator,input-size\n", "line 2: \"time\" is no time in seconds"),
        ("inf,a,1\n", "line 1: \"inf\" is no time in seconds"),
        ("NaN,a,1\n", "line 1: \"NaN\" is no time in seconds"),
        ("1,a,1\n0,a,1\n", "line 2: its time is before the first line's"),
        ("0,a,1\n2,a,1\n1,a,1\n", "line 3: its time is before that of the line before; sort the lines by time"),
        ("-1e300,a,1\n1e300,a,1\n", "line 2: its time is too far from the first line's"),
        ("0,a,x\n", "line 1: \"x\" is no size in bytes"),
        ("0,a,99999999\n", "line 1: an input of 99999999 bytes is over limits.input_size, 16777216"),
        ("0,a b,1\n", "line 1: \"a b\" is not an evaluator name"),
        (&long, "line 1: it is too long"),
    ] {
        let trace = folder.file("trace.csv", text);
        let line = refusal(&run(&["load", "--trace", &trace]), 2);
        assert!(line.starts_with("--trace: ") && line.contains("trace.csv: "), "{line}");
        assert!(line.contains(said), "{text:?}: {line} lacks {said}");
    }
    let mut cut = gzip(b"0,a,1\n1,b,2\n");
    cut.truncate(cut.len() - 12);
    for trace in [folder.file("cut.csv.gz", cut), folder.path("missing.csv").to_str().unwrap().to_owned()] {
        refusal(&run(&["load", "--trace", &trace]), 2);
    }
    let small = folder.file("small.csv", "0,a,1\n");
    for other in
        [&["--rate", "1"][..], &["--customers", "1"], &["--evaluators", "3"], &["--static-data", "{}"], &["--chaos"]]
    {
        let line = refusal(&run(&[&["load", "--trace", &small], other].concat()), 2);
        assert!(line.contains("--trace") && line.contains(other[0]), "{line}");
    }
}

#[test]
fn the_script_makes_a_trace_from_invocations_of_azure_functions() {
    let script = |text: &[u8]| {
        let folder = Folder::new();
        let file = File::open(folder.file("azure.csv", text)).unwrap();
        let mut script = Command::new(traces().join("from-azure.sh"));
        script.arg("5160").stdin(file).stderr(Stdio::piped()).output().unwrap()
    };
    let azure = fs::read(traces().join("azure.csv")).unwrap();
    let output = script(&azure);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout == fs::read(traces().join("small.csv")).unwrap(), "small.csv is what it makes of azure.csv");
    let output = script(&[&azure[..], b"no,call\n"].concat());
    assert!(!output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 62: expected app,func,"), "{output:?}");
}
