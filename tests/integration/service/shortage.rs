//! What the server says while its host lacks something: that it does, and nothing against a plugin.

use std::{collections::BTreeSet, fs, net::TcpStream, process::Command, thread, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::{Server, answer::Answer, letter, program};
use crate::{conformance::http::http_server, support::wasm};

/// What a server in these tests may open else.
const AMPLE: u64 = 1024;

/// Lets the server open this many files more than it has open while nothing is asked of it.
fn allow_more(server: &Server, more: usize) {
    let numbers = || -> BTreeSet<u64> {
        let open = fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap();
        open.map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    };
    let (mut open, mut same) = (numbers(), 0);
    while same < 5 {
        thread::sleep(Duration::from_millis(10));
        let before = std::mem::replace(&mut open, numbers());
        same = if open == before { same + 1 } else { 0 };
    }
    // The system bounds the number that a file gets, which is the lowest that is free.
    let beyond = (0..).filter(|number| !open.contains(number)).nth(more).unwrap();
    allow(server, beyond);
}

fn allow(server: &Server, files: u64) {
    let limit = Rlimit { current: Some(files), maximum: Some(AMPLE) };
    prlimit(Pid::from_raw(server.id().try_into().unwrap()), Resource::Nofile, limit).unwrap();
}

/// Whether it came through; else the host was short of something.
fn came_through(answer: &Answer) -> bool {
    if answer.status == 503 {
        assert_eq!((answer.kind(), answer.header("retry-after")), ("overloaded".into(), Some("1")), "{answer:?}");
        assert!(!answer.lossy().contains("ulimit"), "limits are the operator's: {answer:?}");
        return false;
    }
    assert!([200, 201].contains(&answer.status), "{answer:?}");
    true
}

#[test]
fn a_server_without_files_says_so_and_remembers_nothing_of_it() {
    // Long enough for what is remembered to be seen.
    let server = Server::start(&[("POOL_NEGATIVE_TTL", "1h")]);
    let plugins: Vec<_> = ('a'..='p').map(|name| (name.to_string(), letter(name))).collect();
    let mut refused = 0;
    for (more, (name, plugin)) in (1..).zip(&plugins) {
        allow_more(&server, more);
        let (uploaded, called) = (server.put(name, plugin), server.post("greet", br#"{"name":"Ada"}"#));
        refused += usize::from(!came_through(&uploaded)) + usize::from(!came_through(&called));
    }
    assert!(refused > 6, "{refused}");
    let log = server.log();
    assert!(log.contains("(ulimit -n), or lower service.max_connections"), "{log}");
    allow(&server, AMPLE);
    for (name, plugin) in &plugins {
        assert!(came_through(&server.put(name, plugin)), "the same upload, with files");
        assert_eq!(server.post(name, b"").text(), name);
    }
    assert_eq!(server.metric("evalpool_builds_total", "invalid_plugin"), 0);
}

#[test]
fn large_code_for_which_there_is_no_file_runs_without_one() {
    // A folder, so that no worker wants files as well.
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&[("ENGINE_CODE_CACHE", folder.path().join("code").to_str().unwrap())]);
    let functions = "(func (param i32) (result i32) (i32.rotl (i32.mul (local.get 0) (local.get 0)) (local.get 0)))";
    let functions = functions.repeat(20_000);
    let linked = wasm(&format!(r#"(module {functions} (func (export "five") (result i32) (i32.const 5)))"#));
    let plugin = wasm(&format!(
        r#"(module
            (import "five" "five" (func $five (result i32)))
            {functions}
            (func (export "run") (result i32) (i32.sub (call $five) (i32.const 5))))"#
    ));
    let parts = [("plugin", &plugin[..]), ("link.five", &linked[..])];
    assert_eq!(server.put_form("large", &parts).status, 201);
    let mapped = || {
        let maps = fs::read_to_string(format!("/proc/{}/maps", server.id())).unwrap();
        maps.lines().filter(|line| line.contains("memfd:evalpool-code") && line.contains(" r-xp ")).count()
    };
    assert_eq!((server.post("large", b"").status, mapped()), (200, 2));
    assert_eq!(server.request("DELETE", "/v1/evaluators/large/runtime", &[], b"").status, 204);
    assert_eq!(mapped(), 0);
    // One for the connection, one for what is read, and one for the first of the two modules or for none.
    for (more, files) in [(2, 0), (3, 1)] {
        allow_more(&server, more);
        assert_eq!((server.post("large", b"").status, mapped()), (200, files));
        allow(&server, AMPLE);
        assert_eq!(server.request("DELETE", "/v1/evaluators/large/runtime", &[], b"").status, 204);
    }
}

#[test]
fn a_connection_that_cannot_be_accepted_is_accepted_later() {
    let server = Server::start(&[]);
    allow_more(&server, 0);
    let waiting = server.begin("GET", "/healthz", "", b"");
    server.has_logged("connections cannot be accepted");
    allow(&server, AMPLE);
    assert_eq!(Answer::of(waiting).status, 200);
}

#[test]
fn a_guest_whose_request_gets_no_file_is_not_to_blame() {
    let port = http_server(|_| "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
    let server = Server::start(&[("ENGINE_ALLOWED_HOSTS", "127.0.0.1, localhost"), ("ENGINE_ISOLATION", "reuse")]);
    let plugin = include_bytes!("../../plugins/wat/fetch.wasm");
    let parts = [("spec", &br#"{"config": {"key": "k"}}"#[..]), ("plugin", plugin)];
    assert_eq!(server.put_form("fetch", &parts).status, 201);
    for host in ["127.0.0.1", "localhost"] {
        let ask = || server.post("fetch", format!("http://{host}:{port}/").as_bytes());
        assert_eq!(ask().text(), "ok");
        allow_more(&server, 1);
        assert!(!came_through(&ask()), "{host}");
        allow(&server, AMPLE);
        assert_eq!(ask().text(), "ok");
    }
}

#[test]
fn silent_connections_leave_files_for_uploads_and_calls_and_the_log_says_what_to_raise() {
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -n 256; exec "$0" "$@""#]).arg(program().get_program());
    let server = Server::start_command(limited, &[]);
    server.has_logged("service.max_connections = 1024, engine.max_http_connections = 256 and pool.capacity = 256 need");
    server.has_logged("this process may open 256 (ulimit -n)");
    let connect = |_| TcpStream::connect(&server.address).unwrap();
    let silent: Vec<_> = (0..127).map(connect).collect();
    for name in ["a", "b", "c"] {
        assert_eq!(server.put(name, &letter('x')).status, 201);
        assert_eq!(server.post(name, b"").text(), "x");
    }
    drop(silent);
}

#[test]
fn a_server_that_may_open_next_to_no_files_does_not_start_and_says_why() {
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -n 40; exec "$0" serve --listen 127.0.0.1:0"#]).arg(program().get_program());
    let output = limited.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("at least 64 files, and this process may open 40 (ulimit -n)"), "{said}");
}

#[test]
fn a_process_that_may_write_no_large_file_maps_no_code() {
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -f 16; exec "$0" "$@""#]).arg(program().get_program());
    let server = Server::start_command(limited, &[]);
    assert_eq!(server.put("a", &letter('x')).status, 201);
    assert_eq!(server.post("a", b"").text(), "x");
}

/// The engine itself tells nobody why a collected heap did not grow.
#[test]
fn a_heap_for_which_the_host_has_no_memory_is_the_hosts_affair() {
    const LIST: &str = r#"(module (type $node (struct (field (ref null $node))))
        (func (export "run") (local $list (ref null $node)) (local $n i32)
            (loop $each
                (local.set $list (struct.new $node (local.get $list)))
                (br_if $each (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 3000000))))))"#;
    let server = Server::start(&[
        ("LIMITS_MEMORY", "512MiB"),
        ("POOL_MAX_INSTANCES", "4"),
        ("POOL_CAPACITY", "4"),
        ("LIMITS_EXEC_TIMEOUT", "1m"),
    ]);
    assert_eq!(server.put("list", &wasm(LIST)).status, 201);
    let pid = server.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let data = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    let data: u64 = data.trim().trim_end_matches(" kB").parse().unwrap();
    let allow = |data: Option<u64>| {
        let limit = Rlimit { current: data, maximum: None };
        prlimit(Pid::from_raw(pid.try_into().unwrap()), Resource::Data, limit).unwrap();
    };
    // Some for the server, and too little for the list.
    allow(Some((data << 10) + (80 << 20)));
    assert!(!came_through(&server.post("list", b"")));
    allow(None);
    assert!(came_through(&server.post("list", b"")));
}
