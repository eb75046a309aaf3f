//! A spec is changed without a new upload, and of those who race one wins and the others learn of it.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    letter,
    server::{Server, eventually},
};
use crate::support::{TEXT, WORDS};

/// Uploads `words` with a config.
fn put(server: &Server, config: &Value) -> String {
    let spec = json!({"entry_point": "setting", "config": config}).to_string();
    let put = server.put_form("x", &[("spec", spec.as_bytes()), ("plugin", WORDS)]);
    assert!(put.status < 300, "{put:?}");
    put.header("etag").unwrap().to_owned()
}

#[test]
fn a_patch_changes_what_it_names_and_leaves_the_rest() {
    let folder = TempDir::new().unwrap();
    let mut server = Server::start_in(folder.path(), &[]);
    let first = put(&server, &json!({"a": "1", "b": "2"}));
    let patched = server.patch("x", &[], r#"{"config": {"a": null, "c": "3"}, "limits": {"exec_timeout": "1m"}}"#);
    assert_eq!(patched.status, 200, "{patched:?}");
    assert_ne!(patched.header("etag"), Some(first.as_str()));
    let spec = json!({"entry_point": "setting", "config": {"b": null, "c": null}, "limits": {"exec_timeout": "1m"}});
    assert_eq!(patched.json()["spec"], spec);
    let get = server.get("/v1/evaluators/x");
    assert_eq!((get.header("etag"), &get.json()["spec"]), (patched.header("etag"), &spec));
    server.post("x", b"a").is(422, "guest_error");
    for _ in 0..2 {
        assert_eq!(server.post("x", b"b").text(), "2");
        assert_eq!(server.post("x", b"c").text(), "3");
        server.signal("TERM");
        assert!(server.ended().success());
        server = Server::start_in(folder.path(), &[]);
    }
    // `null` resets a field.
    let patched = server.patch("x", &[], r#"{"config": null, "limits": null, "debug": true}"#);
    assert_eq!(patched.json()["spec"], json!({"entry_point": "setting", "debug": true}));
    assert_eq!(server.files("plugins").len(), 1);
}

#[test]
fn a_bad_patch_changes_nothing() {
    let server = Server::start(&[]);
    let tag = put(&server, &json!({"a": "1"}));
    let large = json!({"labels": {"a": "x".repeat(200_000)}}).to_string();
    let huge = "x".repeat(300_000);
    for (patch, status, said) in [
        ("", 400, "not JSON"),
        ("null", 400, "must be a JSON object"),
        ("[]", 400, "must be a JSON object"),
        (r#"{"confg": {}}"#, 400, "did you mean config?"),
        (r#"{"config": {"a": 1}}"#, 400, "must be a string"),
        (r#"{"limits": {"memory": "100GiB"}}"#, 400, "over the operator's limits.memory"),
        (r#"{"allowed_hosts": ["x.example"]}"#, 400, "engine.allowed_hosts"),
        (r#"{"entry_point": "nobody"}"#, 422, "no entry point"),
        (r#"{"entry_point": null}"#, 400, "must name an entry_point"),
        (
            r#"{"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000"}"#,
            422,
            "as declared",
        ),
        (huge.as_str(), 413, "the patch is over 256 KiB"),
    ] {
        let answer = server.patch("x", &[], patch);
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.text().contains(said), "{answer:?} lacks {said}");
        assert_eq!(server.get("/v1/evaluators/x").header("etag"), Some(tag.as_str()), "{said}");
        assert_eq!(server.post("x", b"a").text(), "1");
    }
    assert_eq!(server.patch("x", &[], &large).status, 200);
    let grown = server.patch("x", &[], &large.replace("\"a\"", "\"b\""));
    grown.is(400, "invalid_request");
    assert!(grown.text().contains("256 KiB"), "{grown:?}");
    server.patch("nobody", &[], "{}").is(404, "not_found");
    server.patch("greet", &[], "{}").is(400, "invalid_request");
    server.patch("x?debug=true", &[], "{}").is(400, "invalid_request");
    server.request("PATCH", "/v1/evaluators/x", &[("content-type", "text/plain")], b"{}").is(415, "invalid_request");
    server.request("PATCH", "/v1/evaluators/x", &[], b"{}").is(415, "invalid_request");
    let plain = server.request("PATCH", "/v1/evaluators/x", &[("content-type", "application/json")], b"{}");
    assert_eq!(plain.status, 200);
}

#[test]
fn who_lost_the_race_is_told_so_and_changes_nothing() {
    let server = Server::start(&[]);
    let wasm = ("content-type", "application/wasm");
    let put_if = |headers: &[(&str, &str)], plugin: &[u8]| {
        server.request("PUT", "/v1/evaluators/y", &[&[wasm], headers].concat(), plugin)
    };
    put_if(&[("if-match", "*")], &letter('a')).is(412, "precondition_failed");
    let first = put_if(&[("if-none-match", "*")], &letter('a'));
    assert_eq!(first.status, 201);
    put_if(&[("if-none-match", "*")], &letter('b')).is(412, "precondition_failed");
    put_if(&[("if-none-match", "\"1\"")], &letter('b')).is(400, "invalid_request");
    let tag = first.header("etag").unwrap().to_owned();
    let weak = format!("W/{tag}");
    put_if(&[("if-match", &weak)], &letter('b')).is(412, "precondition_failed");
    let second = put_if(&[("if-match", &format!("\"0\", {tag}"))], &letter('b'));
    assert_eq!(second.status, 200);
    let stale = [("if-match", tag.as_str())];
    put_if(&stale, &letter('c')).is(412, "precondition_failed");
    server.patch("y", &stale, r#"{"debug": true}"#).is(412, "precondition_failed");
    server.request("DELETE", "/v1/evaluators/y", &stale, b"").is(412, "precondition_failed");
    assert_eq!(server.post("y", b"").text(), "b");
    let second = second.header("etag").unwrap().to_owned();
    let third = server.patch("y", &[("if-match", &second)], r#"{"debug": true}"#);
    assert_eq!(third.status, 200);
    let third = third.header("etag").unwrap().to_owned();
    assert_eq!(server.request("DELETE", "/v1/evaluators/y", &[("if-match", &third)], b"").status, 204);
    // One of the same name that comes later is another one.
    let again = put_if(&[], &letter('a'));
    assert_eq!(again.status, 201);
    assert!([tag, second, third].iter().all(|old| Some(old.as_str()) != again.header("etag")));
    // The built-in one can be replaced by who has read it, and not by who believes it is not there.
    let greet = server.get("/v1/evaluators/greet").header("etag").unwrap().to_owned();
    let on_greet = |headers: &[(&str, &str)]| {
        server.request("PUT", "/v1/evaluators/greet", &[&[wasm], headers].concat(), &letter('g')).status
    };
    assert_eq!(on_greet(&[("if-none-match", "*")]), 412);
    assert_eq!(on_greet(&[("if-match", &greet)]), 200);
    eventually("the others' plugins are gone", || server.files("plugins").len() == 2);
}

#[test]
fn of_many_uploads_that_follow_one_revision_one_is_made() {
    let server = Server::start(&[]);
    let tag = put(&server, &json!({}));
    for headers in [&[("if-match", tag.as_str())][..], &[("if-none-match", "*")]] {
        let name = if headers[0].0 == "if-match" { "x" } else { "new" };
        let statuses: Vec<u16> = thread::scope(|scope| {
            let clients: Vec<_> = ('a'..='d')
                .map(|client| {
                    let server = &server;
                    let plugin = letter(client);
                    scope.spawn(move || server.put_form_if(name, headers, &[("plugin", &plugin)]).status)
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        assert_eq!(statuses.iter().filter(|status| **status < 300).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 3, "{statuses:?}");
    }
    eventually("what lost is closed", || server.metric("evalpool_runtimes_live", "") == 2);
    eventually("what lost is gone", || server.files("plugins").len() <= 2);
}

#[test]
fn of_many_who_patch_at_once_each_change_is_made_or_refused() {
    let server = Server::start(&[]);
    put(&server, &json!({}));
    let made = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let server = &server;
                scope.spawn(move || {
                    let patch = |round| json!({"config": {format!("{client}-{round}"): "x"}}).to_string();
                    (0..5)
                        .filter(|round| match server.patch("x", &[], &patch(*round)).status {
                            200 => true,
                            412 => false,
                            other => panic!("{other}"),
                        })
                        .map(|round| format!("{client}-{round}"))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(!made.is_empty());
    let config = server.info("x")["spec"]["config"].as_object().unwrap().clone();
    assert_eq!(config.keys().cloned().collect::<std::collections::BTreeSet<_>>(), made.into_iter().collect());
}

#[test]
fn calls_under_way_end_on_the_old_revision() {
    calls_while_a_value_is_patched("fresh");
    calls_while_a_value_is_patched("reuse");
}

fn calls_while_a_value_is_patched(isolation: &str) {
    let server = Server::start(&[("ENGINE_ISOLATION", isolation)]);
    put(&server, &json!({"k": "0"}));
    let (done, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let answer = server.post("x", b"k");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let seen: i32 = answer.text().parse().unwrap();
                    assert!(seen >= last, "{seen} after {last}");
                    last = seen;
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=10 {
            let patch = json!({"config": {"k": round.to_string()}}).to_string();
            assert_eq!(server.patch("x", &[], &patch).status, 200);
            assert_eq!(server.post("x", b"k").text(), round.to_string());
        }
        eventually("each caller was answered a few times", || answers.load(Ordering::Relaxed) > 20);
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn records_of_before_are_read_and_can_be_patched() {
    let folder = TempDir::new().unwrap();
    let mut server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.put("old?entry_point=upper", TEXT).status, 201);
    server.signal("TERM");
    assert!(server.ended().success());
    let path = folder.path().join("data/evaluators/old.json");
    let record = json!({
        "name": "old", "digest": evalpool::Digest::of(TEXT).to_string(), "entry_point": "upper",
        "size_bytes": TEXT.len(), "isolation": "reuse", "debug": true,
    });
    fs::write(&path, record.to_string()).unwrap();
    let server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.post("old", b"a").text(), "A");
    let info = server.info("old");
    assert_eq!(info["spec"], json!({"entry_point": "upper", "isolation": "reuse", "debug": true}));
    assert_eq!(info["revision"], 0);
    assert_eq!(server.patch("old", &[("if-match", "\"0\"")], r#"{"debug": null}"#).status, 200);
    assert_eq!(server.info("old")["spec"], json!({"entry_point": "upper", "isolation": "reuse"}));
}
