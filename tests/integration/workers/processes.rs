//! Compile workers as processes of the running program: what kills, stops and starves them.

use std::{fs, process::Command, thread, time::Duration};

use super::bombs;
use crate::{
    service::{Server, eventually, program},
    support::wasm,
};

/// The numbers of a process's compile workers.
fn workers(of: u32) -> Vec<u32> {
    let is_worker = |process: &u32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
        // After the name, in parentheses: the state, then the parent.
        let parent =
            read("stat").rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parent == Some(of) && read("cmdline").contains("evalpool-compile-worker")
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(is_worker).collect()
}

fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success());
}

/// Whether this process is at work: it has used processor time since a moment ago.
fn works(process: u32) -> bool {
    let used = || -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(11)?.parse().ok()
    };
    let before = used();
    thread::sleep(Duration::from_millis(50));
    before.is_some() && used() > before
}

/// The worker that compiles, once it does.
fn busy(server: &Server) -> u32 {
    let mut found = None;
    eventually("a worker compiles", || {
        found = workers(server.id()).into_iter().find(|worker| works(*worker));
        found.is_some()
    });
    found.unwrap()
}

fn small() -> Vec<u8> {
    wasm(r#"(module (func (export "run")))"#)
}

#[test]
fn a_worker_that_is_killed_is_replaced_once_and_others_never_notice() {
    let server = Server::start(&[]);
    thread::scope(|scope| {
        let bomb = scope.spawn(|| server.put("bomb", &bombs::nested_loops()));
        let first = busy(&server);
        signal(first, "KILL");
        let mut second = first;
        eventually("another has its work", || {
            second =
                workers(server.id()).into_iter().find(|worker| *worker != first && works(*worker)).unwrap_or(first);
            second != first
        });
        assert_eq!(server.put("small", &small()).status, 201);
        signal(second, "KILL");
        let answer = bomb.join().unwrap();
        assert_eq!((answer.status, answer.kind()), (500, "internal".into()), "{}", server.log());
    });
    assert_eq!(server.post("small", b"").status, 200);
    eventually("none is left but those that wait", || workers(server.id()).iter().all(|worker| !works(*worker)));
}

#[test]
fn a_worker_that_is_stopped_is_a_build_timeout_and_then_replaced() {
    let server = Server::start(&[("LIMITS_BUILD_TIMEOUT", "2s"), ("POOL_BUILD_CONCURRENCY", "1")]);
    assert_eq!(server.put("first", &small()).status, 201);
    let [idle] = workers(server.id())[..] else { panic!("one slot has one worker") };
    signal(idle, "STOP");
    let other = wasm(r#"(module (func (export "run") nop))"#);
    let answer = server.put("second", &other);
    assert_eq!((answer.status, answer.kind()), (422, "build_timeout".into()));
    eventually("it is gone", || !workers(server.id()).contains(&idle));
    assert_eq!(server.put("second", &other).status, 201, "that is not remembered against the plugin");
}

#[test]
fn whatever_happens_to_the_server_no_worker_is_left() {
    for name in ["KILL", "TERM"] {
        let mut server = Server::start(&[("POOL_GRACE", "0s")]);
        let bomb = {
            let (address, bytes) = (server.address.clone(), bombs::nested_loops());
            thread::spawn(move || {
                let request = ureq::put(format!("http://{address}/v1/evaluators/bomb"));
                let _ = request.header("content-type", "application/wasm").send(&bytes[..]);
            })
        };
        busy(&server);
        let all = workers(server.id());
        signal(server.id(), name);
        server.ended();
        eventually("its workers are gone", || {
            all.iter().all(|worker| {
                let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
                // Gone, or waited for by nobody yet.
                stat.rsplit(')').next().is_none_or(|rest| rest.trim().is_empty() || rest.trim().starts_with('Z'))
            })
        });
        bomb.join().unwrap();
    }
}

#[test]
fn where_no_process_can_be_started_the_host_is_short_of_something_until_it_can() {
    let folder = tempfile::TempDir::new().unwrap();
    let plugin = folder.path().join("small.wasm");
    fs::write(&plugin, small()).unwrap();
    // As few files as the program needs to get there: the pipes of a worker are beyond.
    let limited = |files: usize| {
        let evalpool = program().get_program().to_owned();
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!(r#"ulimit -n {files}; exec "$0" run "$1""#)]).arg(evalpool).arg(&plugin);
        limited.env_remove("RUST_BACKTRACE").output().unwrap()
    };
    let texts: Vec<_> = (8..40).map(|files| String::from_utf8(limited(files).stderr).unwrap()).collect();
    assert!(
        texts.iter().any(|text| text.contains("the host is short of something: a compile worker cannot be started"))
    );
    assert!(texts.iter().all(|text| !text.contains("panicked")), "{texts:#?}");
    assert_eq!(texts.last().map(String::as_str), Some(""), "with enough, it runs");
}
