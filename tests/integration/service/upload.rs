//! Uploads: new ones, replacements, and refusals that leave nothing.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use evalpool::Digest;
use serde_json::Value;

use super::{
    letter,
    server::{Server, eventually},
};
use crate::support::{CALL_HOST, NO_ABORT, TEXT, wasm};

#[test]
fn an_upload_is_new_and_then_a_replacement() {
    let server = Server::start(&[]);
    let digest = Digest::of(TEXT).to_string();
    let answer = server.put(&format!("text?entry_point=upper&wasi=off&isolation=fresh&digest={digest}"), TEXT);
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("location"), Some("/v1/evaluators/text"));
    let info = answer.json();
    assert_eq!(info["name"], "text");
    assert_eq!(info["digest"], digest);
    assert_eq!(info["entry_point"], "upper");
    assert_eq!(info["size_bytes"], TEXT.len());
    assert_eq!(server.post("text", b"abc").text(), "ABC");
    assert_eq!(server.put("text?entry_point=count_vowels", TEXT).status, 200);
    assert_eq!(server.post("text", b"abc").text(), r#"{"count":1}"#);
    let info = server.info("text");
    assert_eq!(info["evaluations"], 2);
    assert_eq!(info["state"], "live");
    eventually("an instance is ready for the next call", || server.info("text")["instances"] == 1);
    assert!(info["last_used"].as_u64().is_some_and(|milliseconds| milliseconds > 1_600_000_000_000), "{info}");
    // The same plugin twice: one file.
    assert_eq!(server.put("more?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.files("plugins").len(), 1);
    assert_eq!(server.files("evaluators"), ["more.json", "text.json"].map(str::to_owned).into());
}

#[test]
fn every_bad_upload_is_refused_in_its_own_words_and_leaves_nothing() {
    let server = Server::start(&[]);
    let start_traps = wasm(r#"(module (func $f unreachable) (start $f) (func (export "run")))"#);
    let wasi =
        wasm(r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (func (export "run")))"#);
    let nothing = wasm("(module (func (export \"f\") (param i32)))");
    let manifest = br#"{"wasm":[{"path":"/etc/passwd"}],"allowed_paths":{"/":"/"}}"#;
    let other = Digest::of(b"other");
    let mismatch = format!("x?entry_point=upper&digest={other}");
    let uploads: &[(&str, &[u8], u16, &str, &str)] = &[
        ("x", b"", 422, "invalid_plugin", "it is empty"),
        ("x", b"hello", 422, "invalid_plugin", "not a WebAssembly binary"),
        ("x", b"(module)", 422, "invalid_plugin", "not a WebAssembly binary"),
        ("x", manifest, 422, "invalid_plugin", "not a WebAssembly binary"),
        ("x", &TEXT[..600], 422, "invalid_plugin", "unexpected end"),
        ("x", NO_ABORT, 422, "entry_point_missing", "word_count"),
        ("x?entry_point=word_count", NO_ABORT, 422, "invalid_plugin", "env::abort"),
        ("x", CALL_HOST, 422, "invalid_plugin", "host_upper"),
        ("x", &start_traps, 422, "invalid_plugin", "unreachable"),
        ("x?wasi=off", &wasi, 422, "invalid_plugin", "WASI is off"),
        ("x?entry_point=lower", TEXT, 422, "entry_point_missing", "upper, count_vowels"),
        ("x", TEXT, 422, "entry_point_missing", "must be named"),
        ("x", &nothing, 422, "entry_point_missing", "no function that could be"),
        (&mismatch, TEXT, 422, "digest_mismatch", &other.to_string()),
        ("x?digest=sha256:12", TEXT, 400, "invalid_request", "64 hexadecimal"),
        ("x?isolation=shared", TEXT, 400, "invalid_request", "`fresh` or `reuse`"),
        ("x?wasi=yes", TEXT, 400, "invalid_request", "`auto` or `off`"),
        ("x?entrypoint=upper", TEXT, 400, "invalid_request", "entrypoint"),
        ("x?entry_point=", TEXT, 400, "invalid_request", "entry_point"),
        ("x..y", TEXT, 400, "invalid_name", ".."),
    ];
    for (name, plugin, status, kind, said) in uploads {
        let answer = server.put(name, plugin);
        answer.is(*status, kind);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(said), "{name}: {detail:?} lacks {said:?}");
    }
    for headers in [
        &[("content-type", "text/plain")][..],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "application/wasm"), ("content-encoding", "gzip")],
    ] {
        server.request("PUT", "/v1/evaluators/x?entry_point=upper", headers, TEXT).is(415, "invalid_request");
    }
    assert_eq!(server.names(), ["greet"]);
    assert_eq!(server.files("evaluators"), BTreeSet::new());
    eventually("no plugin is left in the folder", || server.files("plugins").is_empty());
    eventually("nothing that was opened is left", || server.metric("evalpool_runtimes_live", "") == 0);
    // Tools that name no type, or only that it is bytes, are understood.
    for headers in
        [&[][..], &[("content-type", "application/octet-stream")], &[("content-type", "Application/WASM; x=y")]]
    {
        assert!(server.request("PUT", "/v1/evaluators/x?entry_point=upper", headers, TEXT).status < 300);
    }
}

#[test]
fn a_plugin_whose_initialiser_does_not_end_is_refused_in_time() {
    let server = Server::start(&[("LIMITS_BUILD_TIMEOUT", "2s")]);
    let spins = wasm(r#"(module (func $f (loop (br 0))) (start $f) (func (export "run")))"#);
    server.put("x", &spins).is(422, "build_timeout");
    assert_eq!(server.names(), ["greet"]);
    assert_eq!(server.post("greet", br#"{"name":"Bo"}"#).status, 200);
}

#[test]
fn a_bad_replacement_leaves_the_good_plugin_where_it_is() {
    let server = Server::start(&[("POOL_CAPACITY", "1"), ("POOL_MAX_INSTANCES", "2")]);
    assert_eq!(server.put("x", &letter('a')).status, 201);
    server.put("x", b"not a plugin").is(422, "invalid_plugin");
    server
        .put("x", &wasm(r#"(module (func $f unreachable) (start $f) (func (export "run")))"#))
        .is(422, "invalid_plugin");
    server.put("x?entry_point=walk", &letter('b')).is(422, "entry_point_missing");
    assert_eq!(server.post("x", b"").text(), "a");
    assert_eq!(server.put("x", &letter('b')).status, 200);
    assert_eq!(server.post("x", b"").text(), "b");
    eventually("only the new plugin's file is left", || server.files("plugins").len() == 1);
}

#[test]
fn replacing_under_load_is_never_seen_half_done() {
    let server = Server::start(&[]);
    let plugins = [letter('a'), letter('b')];
    assert_eq!(server.put("x", &plugins[0]).status, 201);
    let (done, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let answer = server.post("x", b"");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    assert!(["a", "b"].contains(&answer.text()), "{answer:?}");
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=20 {
            assert_eq!(server.put("x", &plugins[round % 2]).status, 200);
            // Whoever asks after the upload was answered gets the new one.
            assert_eq!(server.post("x", b"").text(), ["a", "b"][round % 2]);
        }
        eventually("each caller was answered a few times", || answers.load(Ordering::Relaxed) > 20);
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(server.metric("evalpool_evaluations_total", ""), {
        let ok = server.metric("evalpool_evaluations_total", r#"outcome="ok""#);
        assert!(ok > 20);
        ok
    });
    eventually("the replaced plugin's file is gone", || server.files("plugins").len() == 1);
}

#[test]
fn of_many_uploads_of_one_name_the_last_is_the_last_everywhere() {
    let server = Server::start(&[]);
    thread::scope(|scope| {
        for client in 0..4u8 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..5u8 {
                    assert!(server.put("x", &letter(char::from(b'a' + client * 5 + round))).status < 300);
                }
            });
        }
    });
    let record: Value =
        serde_json::from_str(&fs::read_to_string(server.data.join("evaluators/x.json")).unwrap()).unwrap();
    assert_eq!(record["digest"], server.info("x")["digest"]);
    let answered = server.post("x", b"").text().chars().next().unwrap();
    assert_eq!(record["digest"], Digest::of(&letter(answered)).to_string());
    eventually("one plugin's file is left", || server.files("plugins").len() == 1);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_an_upload_leaves_nothing() {
    let server = Server::start(&[]);
    let length = format!("content-length: {}\r\n", TEXT.len());
    let client = server.begin("PUT", "/v1/evaluators/x?entry_point=upper", &length, &TEXT[..600]);
    drop(client);
    // And one who has sent all of it and does not wait.
    let client = server.begin("PUT", "/v1/evaluators/y?entry_point=upper", &length, TEXT);
    drop(client);
    assert_eq!(server.put("z?entry_point=upper", TEXT).status, 201);
    eventually("the folder and the pool agree", || {
        let names = server.names();
        let files = server.files("evaluators");
        let agree = |name: &str| names.contains(&name.to_owned()) == files.contains(&format!("{name}.json"));
        !names.contains(&"x".to_owned()) && agree("y") && agree("z") && server.files("plugins").len() == 1
    });
}

/// Names that a plugin chooses are in what is said of it: of exports and imports, and of functions in the stack of a trap.
#[test]
fn hundreds_of_bad_uploads_with_long_names_leave_no_memory_behind() {
    let long = |at: usize| format!("{at:08}").repeat(12);
    let many = |text: &dyn Fn(String) -> String| (0..1_000).map(|at| text(long(at))).collect::<String>();
    let exports = wasm(&format!("(module (func $f) {})", many(&|name| format!("(export \"{name}\" (func $f))"))));
    let imports = wasm(&format!(
        "(module {} (func (export \"run\")))",
        many(&|name| format!("(import \"{name}\" \"x\" (func))"))
    ));
    // It calls itself until it traps, so that its name is many times in the stack.
    let name = format!("$call_{}", "n".repeat(90_000));
    let deeper = "(if (i32.gt_u (global.get $depth) (i32.const 40)) (then unreachable)) \
                  (global.set $depth (i32.add (global.get $depth) (i32.const 1)))";
    let traps = wasm(&format!(
        "(module (global $depth (mut i32) (i32.const 0)) (func {name} {deeper} (call {name})) (start {name}) \
         (func (export \"run\")))"
    ));
    let server = Server::start_frugal(&[("POOL_NEGATIVE_TTL", "1h")]);
    let upload = |round: usize| {
        for (kind, bad) in [("entry_point_missing", &exports), ("invalid_plugin", &imports), ("invalid_plugin", &traps)]
        {
            let answer = server.put(&format!("bad-{round}?entry_point=run"), bad);
            assert_eq!((answer.status, answer.kind()), (422, kind.into()));
        }
    };
    (0..10).for_each(upload);
    let before = server.held().resident_mib;
    (10..150).for_each(upload);
    let grown = server.held().resident_mib.saturating_sub(before);
    assert!(grown < 32, "{grown} MiB for 420 uploads of 97 KiB");
}
