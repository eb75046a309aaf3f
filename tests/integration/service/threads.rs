//! Guests that keep their threads hold up neither HTTP nor each other. That others are answered *while* they run is what is
//! asserted, not how soon: a bench has the times.

use std::{fs, io::ErrorKind, net::TcpStream};

use super::{
    answer::Answer,
    server::{Server, eventually},
};
use crate::support::{GREET, wasm};

/// Logs `!`, and then fills or copies nearly 64 MiB of memory again and again.
fn bulk(number: usize) -> Vec<u8> {
    bulk_in(number, "(export \"run\")", "")
}

/// The same in a function that is exported, or what else is said of it.
fn bulk_in(number: usize, export: &str, more: &str) -> Vec<u8> {
    let instruction = ["fill (i32.const 0) (i32.const 7)", "copy (i32.const 1) (i32.const 0)"][number % 2];
    wasm(&format!(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "log_info" (func $log (param i64)))
            (memory 900)
            {more} (func $bulk {export} (local $at i64)
                (local.set $at (call $alloc (i64.const 1)))
                (call $store (local.get $at) (i32.const 33))
                (call $log (local.get $at))
                (loop $again (memory.{instruction} (i32.const 58900000)) (br $again))))"#
    ))
}

/// What the server's threads whose name begins so have used of processors, in ticks of the system's clock.
fn used(server: &Server, name: &str) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap().flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let of_thread = |stat: String| -> Option<u64> {
        let (before, rest) = stat.rsplit_once(") ")?;
        // From the state on: what it used itself, and what the system used for it.
        let fields: Vec<_> = rest.split_whitespace().collect();
        let [itself, system] = [11, 12].map(|at| fields.get(at)?.parse::<u64>().ok());
        before.split_once(" (")?.1.starts_with(name).then_some(itself? + system?)
    };
    stats.filter_map(of_thread).sum()
}

fn is_unanswered(call: &TcpStream) -> bool {
    call.set_nonblocking(true).unwrap();
    let came = call.peek(&mut [0]).map_err(|error| error.kind());
    call.set_nonblocking(false).unwrap();
    came == Err(ErrorKind::WouldBlock)
}

#[test]
fn beside_guests_that_fill_their_memory_health_and_neighbours_are_answered() {
    let server = Server::start(&[]);
    assert_eq!(server.put("neighbour", GREET).status, 201);
    let calls: Vec<_> = (0..4)
        .map(|number| {
            let name = format!("hostile-{number}");
            assert_eq!(server.put(&name, &bulk(number)).status, 201);
            server.begin_evaluation(&name)
        })
        .collect();
    let by_http = used(&server, "tokio-rt-worker");
    for _ in 0..20 {
        assert_eq!(server.get("/healthz").status, 200);
        assert_eq!(server.post("neighbour", br#"{"name":"Ada"}"#).text(), r#"{"greeting":"Hello, Ada!"}"#);
    }
    assert_eq!(server.put("another", GREET).status, 201, "nor are builds held up");
    eventually("the guests have used a second", || used(&server, "evalpool-long") > 100);
    let by_http = used(&server, "tokio-rt-worker") - by_http;
    let by_guests = used(&server, "evalpool-long");
    assert!(by_http < by_guests / 4, "HTTP has threads of its own: {by_http} and {by_guests}");
    assert_eq!(server.metric("evalpool_instances_live", "busy"), 4);
    assert!(calls.iter().all(is_unanswered), "all that was while the four ran");
}

#[test]
fn initialisers_run_on_no_thread_of_http() {
    let server = Server::start(&[]);
    let plugin = bulk_in(0, "", r#"(start $bulk) (func (export "run"))"#);
    let by_http = used(&server, "tokio-rt-worker");
    let head = format!("content-type: application/wasm\r\ncontent-length: {}\r\n", plugin.len());
    let upload = server.begin("PUT", "/v1/evaluators/hostile", &head, &plugin);
    eventually("the initialiser has used a second", || used(&server, "evalpool") > 100);
    let (by_http, by_guests) = (used(&server, "tokio-rt-worker") - by_http, used(&server, "evalpool"));
    assert!(by_http < by_guests / 4, "{by_http} and {by_guests}");
    assert!(is_unanswered(&upload));
}

#[test]
fn guests_that_run_long_end_as_they_would_on_any_thread() {
    let server = Server::start(&[("LIMITS_EXEC_TIMEOUT", "1s"), ("POOL_MAX_INSTANCES_PER_EVALUATOR", "4")]);
    assert_eq!(server.put("hostile", &bulk(0)).status, 201);
    let calls: Vec<_> = (0..4).map(|_| server.begin_evaluation("hostile")).collect();
    for call in calls {
        Answer::of(call).is(504, "exec_timeout");
    }
    eventually("none is left", || server.metric("evalpool_instances_live", "busy") == 0);
    assert_eq!(server.metric("evalpool_instances_discarded_total", r#"reason="timeout""#), 4);
    assert_eq!(server.metric("evalpool_evaluations_total", r#"outcome="exec_timeout""#), 4);
}
