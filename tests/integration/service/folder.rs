//! Closing over HTTP, and the folder: what is deleted is gone, and what is stored survives.

use std::{collections::BTreeSet, fs};

use evalpool::Digest;
use serde_json::json;
use tempfile::TempDir;

use super::{
    SPIN,
    answer::Answer,
    letter,
    server::{Server, eventually},
};
use crate::support::{TEXT, wasm};

#[test]
fn a_deleted_runtime_is_gone_and_its_evaluator_stays() {
    let server = Server::start(&[]);
    assert_eq!(server.put("x", &letter('x')).status, 201);
    assert_eq!(server.post("x", b"").text(), "x");
    for _ in 0..2 {
        assert_eq!(server.delete("x/runtime").status, 204);
        let info = server.info("x");
        assert_eq!((&info["state"], &info["instances"]), (&json!("cold"), &json!(0)));
        assert_eq!(server.metric("evalpool_runtimes_live", ""), 0);
    }
    assert_eq!(server.post("x", b"").text(), "x");
    assert_eq!(server.info("x")["state"], "live");
}

#[test]
fn a_call_that_a_close_interrupts_is_told_so() {
    let server = Server::start(&[("POOL_GRACE", "100ms"), ("LIMITS_EXEC_TIMEOUT", "10m")]);
    for path in ["spin/runtime", "spin"] {
        assert!(server.put("spin", &wasm(SPIN)).status < 300);
        let call = server.begin_evaluation("spin");
        assert_eq!(server.delete(path).status, 204);
        Answer::of(call).is(409, "closed");
        assert_eq!(server.metric("evalpool_runtimes_live", ""), 0, "204 means gone");
    }
    assert_eq!(server.metric("evalpool_closes_total", r#"how="forced""#), 2);
    server.post("spin", b"").is(404, "not_found");
    assert_eq!(server.files("evaluators"), BTreeSet::new());
    eventually("its file is gone", || server.files("plugins").is_empty());
}

#[test]
fn evaluators_survive_a_restart_as_they_were() {
    let folder = TempDir::new().unwrap();
    let mut server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.put("counter?entry_point=counter&isolation=reuse", TEXT).status, 201);
    assert_eq!(server.put("team%2Fupper?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.put("gone", &letter('x')).status, 201);
    assert_eq!(server.put("greet", &letter('g')).status, 200, "the built-in one is replaced");
    assert_eq!(server.delete("gone").status, 204);
    let listed = server.names();
    server.signal("TERM");
    assert!(server.ended().success());

    let mut server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.names(), listed);
    let info = server.info("counter");
    assert_eq!(info["state"], "cold");
    assert_eq!(info["digest"], Digest::of(TEXT).to_string());
    assert_eq!(info["entry_point"], "counter");
    assert_eq!(server.post("counter", b"").text(), "1");
    assert_eq!(server.post("counter", b"").text(), "2", "its instances are used again");
    assert_eq!(server.post("team%2Fupper", b"a").text(), "A");
    assert_eq!(server.post("greet", b"").text(), "g");
    // Killed in whatever it was doing: what was answered is there.
    assert_eq!(server.put("last", &letter('z')).status, 201);
    assert_eq!(server.delete("greet").status, 204);
    server.post("greet", b"").is(404, "not_found");
    server.signal("KILL");
    server.ended();

    let server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.post("last", b"").text(), "z");
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).text(), r#"{"greeting":"Hello, Ada!"}"#, "built in again");
}

#[test]
fn a_damaged_folder_costs_what_is_damaged_and_no_more() {
    let folder = TempDir::new().unwrap();
    let mut server = Server::start_in(folder.path(), &[]);
    for name in ["good", "cut"] {
        assert_eq!(server.put(name, &letter('x')).status, 201);
    }
    server.signal("TERM");
    assert!(server.ended().success());
    let evaluators = folder.path().join("data/evaluators");
    fs::write(evaluators.join("cut.json"), r#"{"name":"cut","#).unwrap();
    fs::write(evaluators.join("notes.txt"), "mine").unwrap();
    let server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.names(), ["good", "greet"]);
    assert_eq!(server.post("good", b"").text(), "x");
    for file in ["cut.json", "notes.txt"] {
        assert!(evaluators.join(file).exists());
        server.has_logged(file);
    }
}

#[test]
fn a_folder_that_refuses_is_an_internal_error_and_publishes_nothing() {
    let server = Server::start(&[]);
    assert_eq!(server.put("kept", &letter('k')).status, 201);
    fs::rename(server.data.join("evaluators"), server.data.join("elsewhere")).unwrap();
    server.put("x", &letter('x')).is(500, "internal");
    server.put("kept", &letter('x')).is(500, "internal");
    server.post("x", b"").is(404, "not_found");
    assert_eq!(server.post("kept", b"").text(), "k");
    server.has_logged("cannot be stored");
    eventually("what was built for nobody is closed", || server.metric("evalpool_runtimes_live", "") == 1);
    // The file of a cold plugin is gone: the client learns that it is the server's trouble, and no more.
    assert_eq!(server.delete("kept/runtime").status, 204);
    fs::remove_dir_all(server.data.join("plugins")).unwrap();
    server.post("kept", b"").is(503, "source_unavailable");
    server.has_logged("a stored plugin cannot be read");
}
