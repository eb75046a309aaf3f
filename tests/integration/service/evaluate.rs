//! Evaluations over HTTP: answers, failures by kind, and clients that leave.

use std::net::Shutdown;

use super::{
    SPIN, letter,
    server::{Server, eventually},
};
use crate::support::{TEXT, TOTALS, wasm};

#[test]
fn the_built_in_evaluator_answers_at_once() {
    let server = Server::start(&[]);
    let answer = server.post("greet", br#"{"name":"Ada"}"#);
    assert_eq!((answer.status, answer.text()), (200, r#"{"greeting":"Hello, Ada!"}"#));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let timing = answer.header("server-timing").unwrap();
    for (part, name) in timing.split(", ").zip(["wait;dur=", "build;dur=", "exec;dur="]) {
        let milliseconds: f64 = part.strip_prefix(name).unwrap().parse().unwrap();
        assert!((0.0..60_000.0).contains(&milliseconds), "{timing}");
    }
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn output_is_json_only_if_it_parses_as_json() {
    let server = Server::start(&[]);
    assert_eq!(server.put("echo?entry_point=echo", TOTALS).status, 201);
    let large = format!("[{}0]", "0,".repeat(100_000));
    for (output, is_json) in [
        (&b"{\"a\":1}"[..], true),
        (b" [1, 2]\n", true),
        (b"0", true),
        (large.as_bytes(), true),
        (b"", false),
        (b"hello", false),
        (b"{} {}", false),
        (b"\"\xff\"", false),
        (b"\0\x01\xff", false),
    ] {
        let answer = server.post("echo", output);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, output);
        let kind = if is_json { "application/json" } else { "application/octet-stream" };
        assert_eq!(answer.header("content-type"), Some(kind), "{:?}", String::from_utf8_lossy(output));
    }
}

#[test]
fn every_failure_of_a_guest_has_its_kind() {
    let server = Server::start(&[
        ("LIMITS_EXEC_TIMEOUT", "1m"),
        ("LIMITS_OUTPUT_SIZE", "1KiB"),
        ("LIMITS_MEMORY", "1MiB"),
        ("LIMITS_FUEL", "1000000"),
    ]);
    let exit = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (func (export "run") (call $exit (i32.const 3))))"#;
    let hungry = r#"(module (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
        (func (export "run") (drop (call $alloc (i64.const 100000000)))))"#;
    for (name, text) in [("trap", r#"(module (func (export "run") unreachable))"#), ("exit", exit), ("hungry", hungry)]
    {
        assert_eq!(server.put(name, &wasm(text)).status, 201, "{name}");
    }
    assert_eq!(server.put("fail?entry_point=fail", TEXT).status, 201);
    assert_eq!(server.put("upper?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.put("fuel", &wasm(SPIN)).status, 201);

    server.post("trap", b"").is(422, "guest_trap");
    let failed = server.post("fail", b"the soup is cold");
    failed.is(422, "guest_error");
    assert!(failed.json()["detail"].as_str().unwrap().ends_with("the soup is cold"));
    server.post("exit", b"").is(422, "guest_exit");
    server.post("hungry", b"").is(422, "out_of_memory");
    server.post("fuel", b"").is(422, "out_of_fuel");
    server.post("upper", &[b'a'; 2000]).is(422, "output_too_large");
    // Each fails alone: the next caller of the same evaluator is served.
    assert_eq!(server.post("upper", b"abc").text(), "ABC");
    eventually("nothing is in use", || server.metric("evalpool_instances_live", "busy") == 0);
}

#[test]
fn a_guest_that_does_not_end_is_stopped_at_its_deadline() {
    let server = Server::start(&[("LIMITS_EXEC_TIMEOUT", "200ms")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    server.post("spin", b"").is(504, "exec_timeout");
    assert_eq!(server.metric("evalpool_evaluations_total", r#"outcome="exec_timeout""#), 1);
}

#[test]
fn what_finds_nothing_free_is_told_to_come_again() {
    let one = [("POOL_CAPACITY", "1"), ("POOL_MAX_INSTANCES", "1"), ("LIMITS_EXEC_TIMEOUT", "1m")];
    let server = Server::start(&[&one[..], &[("POOL_MAX_WAITING", "0")]].concat());
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    let _spinning = server.begin_evaluation("spin");
    server.post("greet", b"{}").is(429, "saturated");
    server.put("other", &letter('x')).is(429, "saturated");

    // The upload and the call that spins wait for what the one before gives back, which takes no such time.
    let server = Server::start(&[&one[..], &[("LIMITS_WAIT_TIMEOUT", "3s")]].concat());
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    let _spinning = server.begin_evaluation("spin");
    server.post("greet", b"{}").is(429, "wait_timeout");
}

#[test]
fn a_client_that_leaves_stops_its_guest() {
    let server = Server::start(&[("LIMITS_EXEC_TIMEOUT", "10m")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    for left in 1..=3 {
        let client = server.begin_evaluation("spin");
        eventually("its guest has a stack", || server.metric("evalpool_slots_live", r#"kind="stack""#) == 1);
        client.shutdown(Shutdown::Both).unwrap();
        drop(client);
        eventually("the evaluation is counted as cancelled", || {
            server.metric("evalpool_evaluations_total", r#"outcome="cancelled""#) == left
        });
        eventually("its guest is gone", || server.metric("evalpool_instances_live", "busy") == 0);
    }
    assert_eq!(server.metric("evalpool_instances_discarded_total", r#"reason="cancelled""#), 3);
    assert_eq!(server.post("greet", br#"{"name":"Bo"}"#).status, 200);
}

/// Many are JSON, which a cut would break.
#[test]
fn a_plugins_own_message_is_whole() {
    let server = Server::start(&[]);
    assert_eq!(server.put("fail?entry_point=fail", TEXT).status, 201);
    let message = serde_json::json!({ "reason": "\"\n".repeat(15_000) }).to_string();
    assert!(message.len() > 60_000);
    let answer = server.post("fail", message.as_bytes());
    answer.is(422, "guest_error");
    assert_eq!(answer.json()["detail"], format!("the plugin reported an error: {message}"));
}

#[test]
fn a_call_names_its_entry_point_or_runs_the_default() {
    let server = Server::start(&[]);
    assert_eq!(server.put("text?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.post("text", b"tea").text(), "TEA");
    let vowels = server.post("text?entry_point=count_vowels", b"tea");
    assert!(vowels.status == 200 && vowels.text().contains("\"count\":2"), "{vowels:?}");
    let unknown = server.post("text?entry_point=price", b"tea");
    server.post("text?entry_point=price", b"tea").is(422, "entry_point_missing");
    assert!(unknown.text().contains("upper") && unknown.text().contains("count_vowels"), "{unknown:?}");
    server.post("text?entry_point=", b"tea").is(400, "invalid_request");
    server.post("text?entry=upper", b"tea").is(400, "invalid_request");
    assert_eq!(server.metric("evalpool_builds_total", r#"outcome="ok""#), 1);
}
