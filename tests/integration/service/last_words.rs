//! What a guest left behind, where the program shows it: `run` and `check` print it, the server logs it, and clients see it
//! of an evaluator whose `debug` is on.

use std::{fs, process::Command, time::Instant};

use tempfile::TempDir;

use super::server::{Server, program};
use crate::support::{CRASH, START_TRAPS, TOTALS, wasm};

/// What a command prints: on standard output, and on standard error.
fn printed(command: &mut Command, code: i32) -> (String, String) {
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(code), "{err}");
    (out, err)
}

#[test]
fn run_and_check_show_why_a_plugin_failed() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let (crash, start) = (file("crash.wasm", CRASH), file("start.wasm", &wasm(START_TRAPS)));
    let run = |entry: &str, input: &str, code| {
        printed(program().arg("run").arg(&crash).args(["--entry", entry, "--input", input]), code)
    };
    let (_, err) = run("crash", "17\u{1b}[2J", 1);
    let lines: Vec<_> = err.lines().collect();
    let stack = |line: &str, name: &str| line.starts_with("    0x") && line.ends_with(name);
    assert!(lines[0].starts_with("error: guest_trap: the plugin trapped: "), "{err}");
    assert_eq!((lines[1], lines[5], lines[6]), ("  stack:", "  stderr:", r"    no such order: 17\u{1b}[2J"), "{err}");
    assert!(stack(lines[2], "give_up") && stack(lines[3], "check_order") && stack(lines[4], "crash"), "{err}");
    // A plugin that does not fail is heard as well.
    let (out, err) = run("say", "hello", 0);
    assert_eq!((out.as_str(), err.as_str()), ("", "  stderr:\n    err: hello\n  stdout:\n    out: hello\n"));
    for command in ["run", "check"] {
        let (_, err) = printed(program().arg(command).arg(&start), 1);
        assert!(err.starts_with("error: invalid_plugin: ") && err.ends_with("  stderr:\n    starting\n"), "{err}");
    }
}

#[test]
fn clients_see_them_of_an_evaluator_whose_debug_is_on() {
    let server = Server::start(&[]);
    assert_eq!(server.put("open?entry_point=crash&debug=true", CRASH).json()["debug"], true);
    assert_eq!(server.put("closed?entry_point=crash", CRASH).json()["debug"], false);
    let open = server.post("open", b"17");
    open.is(422, "guest_trap");
    let words = &open.json()["last_words"];
    assert_eq!((&words["stderr"], &words["stdout"]), (&"no such order: 17\n".into(), &"".into()), "{words}");
    assert!(words["stack"][0].as_str().unwrap().ends_with(" - give_up"), "{words}");
    // The same plugin, whose owner wants its clients to see nothing.
    let closed = server.post("closed", b"17");
    closed.is(422, "guest_trap");
    assert!(!closed.text().contains("no such order") && !closed.text().contains("give_up"), "{closed:?}");
    assert!(closed.json().get("last_words").is_none(), "{closed:?}");
    // An upload that fails is told why, if it asks.
    let told = server.put("start?debug=true", &wasm(START_TRAPS));
    told.is(422, "invalid_plugin");
    assert_eq!(told.json()["last_words"]["stderr"], "starting\n");
    assert!(server.put("start", &wasm(START_TRAPS)).json().get("last_words").is_none());
    server.put("open?debug=yes", CRASH).is(400, "invalid_request");
    // A replacement decides anew.
    assert_eq!(server.put("open?entry_point=crash&debug=false", CRASH).status, 200);
    assert!(server.post("open", b"17").json().get("last_words").is_none());
}

#[test]
fn debug_survives_a_restart() {
    let folder = TempDir::new().unwrap();
    let server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.put("open?entry_point=crash&debug=true", CRASH).status, 201);
    drop(server);
    let server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.info("open")["debug"], true);
    assert_eq!(server.post("open", b"1").json()["last_words"]["stderr"], "no such order: 1\n");
}

#[test]
fn the_operators_log_has_them_and_what_plugins_log_under_their_evaluators_names() {
    let server = Server::start(&[]);
    for name in ["a", "b"] {
        assert_eq!(server.put(&format!("crash-{name}?entry_point=crash"), CRASH).status, 201);
        assert_eq!(server.put(&format!("log-{name}?entry_point=log_it"), TOTALS).status, 201);
        server.post(&format!("crash-{name}"), name.as_bytes()).is(422, "guest_trap");
        assert_eq!(server.post(&format!("log-{name}"), format!("logged by {name}").as_bytes()).status, 200);
    }
    assert_eq!(server.put("say?entry_point=say", CRASH).status, 201);
    assert_eq!(server.post("say", b"hello").status, 200);
    server.put("start", &wasm(START_TRAPS)).is(422, "invalid_plugin");
    for (target, evaluator, said) in [
        ("evalpool::plugin::last_words", "crash-a", r#"stderr="no such order: a\n""#),
        ("evalpool::plugin::last_words", "crash-b", r#"stderr="no such order: b\n""#),
        ("evalpool::plugin::last_words", "crash-b", " - give_up < 0x"),
        ("evalpool::plugin::last_words", "say", r#"stdout="out: hello\n""#),
        ("evalpool::plugin::last_words", "start", r#"stderr="starting\n""#),
        ("evalpool::plugin", "log-a", "logged by a"),
        ("evalpool::plugin", "log-b", "logged by b"),
    ] {
        server.has_logged(said);
        let log = server.log();
        let its = |line: &&str| line.contains(&format!(" {target}: ")) && line.contains(said);
        let lines: Vec<_> = log.lines().filter(its).collect();
        let named = format!("evaluator=\"{evaluator}\"");
        assert!(!lines.is_empty() && lines.iter().any(|line| line.contains(&named)), "{said}, {named}: {log}");
    }
}

/// At the level that a server has unless it is told another.
#[test]
fn a_plugin_that_fails_at_each_call_does_not_fill_its_operators_log() {
    let began = Instant::now();
    let server = Server::start(&[("LOG_LEVEL", "info")]);
    assert_eq!(server.put("crash?entry_point=crash", CRASH).status, 201);
    for _ in 0..50 {
        server.post("crash", b"17").is(422, "guest_trap");
    }
    server.has_logged("no such order: 17");
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("no such order")).collect();
    assert!(lines[0].contains("WARN") && lines[0].contains(r#"evaluator="crash""#), "{}", lines[0]);
    // One in ten seconds, on a machine however slow.
    assert!(lines.len() as u64 <= 1 + began.elapsed().as_secs() / 10, "{} lines", lines.len());
}
