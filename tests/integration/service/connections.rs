//! What connections may hold, for how long, and who gives way to whom.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Output,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::{
    SPIN,
    answer::Answer,
    program,
    server::{PATIENCE, Server, eventually},
};
use crate::support::wasm;

const KIB: usize = 1024;

/// With room for 640 KiB of bodies and answers, beside the 16 KiB that each connection has of its own.
const SMALL: [(&str, &str); 4] = [
    ("LIMITS_INPUT_SIZE", "80KiB"),
    ("LIMITS_OUTPUT_SIZE", "80KiB"),
    ("LIMITS_PLUGIN_SIZE", "64KiB"),
    ("SERVICE_BODY_MEMORY", "640KiB"),
];

impl Server {
    /// What bodies and answers take of `service.body_memory`.
    fn held_bytes(&self) -> usize {
        usize::try_from(self.metric("evalpool_http_body_bytes", "")).unwrap()
    }

    /// Open connections, the one that asks included.
    fn connections(&self) -> u64 {
        self.metric("evalpool_http_connections", "")
    }

    /// Nothing is held for anybody, and nobody is connected who is gone.
    fn comes_to_rest(&self) {
        eventually("all bytes are given back", || self.held_bytes() == 0);
        eventually("all connections are over", || self.connections() == 1);
        eventually("no guest runs", || self.metric("evalpool_instances_live", "busy") == 0);
    }

    /// Begins a body of `whole` bytes, and sends so many of it.
    fn begin_body(&self, whole: usize, sent: usize) -> TcpStream {
        self.begin("POST", "/v1/evaluators/greet", &format!("content-length: {whole}\r\n"), &vec![b' '; sent])
    }
}

/// The end of a connection, as its client sees it: the status of an answer, or none.
fn status_of(mut stream: TcpStream) -> Option<u16> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    // A connection that gives way may be reset.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).split(' ').nth(1).map(|status| status.parse().unwrap())
}

#[test]
fn bodies_that_stall_lock_nobody_out_and_give_back_what_they_hold() {
    let server = Server::start(&[&SMALL[..], &[("SERVICE_TRANSFER_TIMEOUT", "8s")]].concat());
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    let files = server.held().open_files;
    // 63 KiB of each take of the budget, so that ten find room; unless the machine is so slow that the first has been too slow
    // before the last has come.
    let stalled = (0..9).find_map(|_| {
        let stalled: Vec<_> = (0..16).map(|_| server.begin_body(80 * KIB, 79 * KIB)).collect();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(8) {
            if server.held_bytes() == 10 * 63 * KIB {
                return Some(stalled);
            }
        }
        drop(stalled);
        server.comes_to_rest();
        None
    });
    let stalled = stalled.expect("the budget is full");
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200, "what is small finds room at once");
    let large = || server.post("greet", &[br#"{"name":"Bo"}"#.to_vec(), vec![b' '; 79 * KIB]].concat()).status;
    eventually("what is large does when one is behind", || large() == 200);
    assert!(server.held_bytes() <= 640 * KIB);
    let mut ends: Vec<_> = stalled.into_iter().map(status_of).collect();
    ends.sort_unstable();
    // Those that found no room and those that gave theirs to others, and those that took too long.
    assert!(ends.iter().all(|end| [Some(429), Some(408)].contains(end)), "{ends:?}");
    assert!(ends.iter().filter(|end| **end == Some(429)).count() >= 6, "{ends:?}");
    server.comes_to_rest();
    eventually("its files are closed", || server.held().open_files <= files);
}

#[test]
fn connections_that_are_idle_or_stalled_lock_nobody_out() {
    let server = Server::start(&[("SERVICE_MAX_CONNECTIONS", "4")]);
    for stall in [&|| TcpStream::connect(&server.address).unwrap() as TcpStream, &|| server.begin_body(10, 1)]
        as [&dyn Fn() -> TcpStream; 2]
    {
        let stalled: Vec<_> = (0..12).map(|_| stall()).collect();
        for path in ["/healthz", "/readyz", "/metrics", "/v1/evaluators"] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        assert!(server.connections() <= 4);
        assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
        drop(stalled);
        server.comes_to_rest();
    }
}

/// A client whose system takes little of an answer that it does not read.
fn narrow(server: &Server) -> TcpStream {
    let address: SocketAddr = server.address.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(address).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream
}

#[test]
fn answers_that_are_not_read_are_bounded_in_sum_and_in_time() {
    const MIB: usize = 1024 * KIB;
    let server = Server::start_frugal(&[
        ("LIMITS_OUTPUT_SIZE", "1MiB"),
        ("LIMITS_PLUGIN_SIZE", "1MiB"),
        ("LIMITS_INPUT_SIZE", "1KiB"),
        ("SERVICE_BODY_MEMORY", "8MiB"),
        ("SERVICE_TRANSFER_TIMEOUT", "4s"),
    ]);
    // Says a mebibyte of zeros.
    let large = wasm(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (func (export "run") (call $output (call $alloc (i64.const 1048576)) (i64.const 1048576))))"#,
    );
    assert_eq!(server.put("large", &large).status, 201);
    assert_eq!(server.post("large", b"").body.len(), MIB);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    server.comes_to_rest();
    let before = server.held();
    let mut readers = Vec::new();
    for _ in 0..60 {
        let mut stream = narrow(&server);
        stream
            .write_all(
                b"POST /v1/evaluators/large HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            )
            .unwrap();
        readers.push(stream);
        assert!(server.held_bytes() <= 8 * MIB);
    }
    let evaluated = || server.metric("evalpool_evaluations_total", r#"outcome="ok""#);
    eventually("all have been evaluated", || evaluated() == 62);
    let grown = server.held().resident_mib.saturating_sub(before.resident_mib);
    assert!(grown < 32, "{grown} MiB for 60 readers of a mebibyte each");
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200, "others are answered");
    // Nobody has read a byte, and all is given back.
    server.comes_to_rest();
    let ends: Vec<_> = readers.into_iter().map(status_of).collect();
    assert!(ends.iter().all(|end| [Some(200), Some(503)].contains(end)), "{ends:?}");
    assert!(ends.contains(&Some(200)), "{ends:?}");
    eventually("its files are closed", || server.held().open_files <= before.open_files);
    assert_eq!(server.post("large", b"").body.len(), MIB);
}

#[test]
fn an_answer_that_finds_no_room_is_refused_and_can_be_asked_for_again() {
    let more = [("POOL_MAX_INSTANCES_PER_EVALUATOR", "10"), ("LIMITS_EXEC_TIMEOUT", "10m"), ("POOL_GRACE", "0s")];
    let server = Server::start(&[&SMALL[..], &more].concat());
    let large = wasm(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (func (export "run") (call $output (call $alloc (i64.const 81920)) (i64.const 81920))))"#,
    );
    assert_eq!(server.put("large", &large).status, 201);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    assert_eq!(server.post("large", b"").body.len(), 80 * KIB);
    // Who is at work gives way to nobody.
    let length = format!("content-length: {}\r\n", 79 * KIB);
    let spinning: Vec<_> =
        (0..10).map(|_| server.begin("POST", "/v1/evaluators/spin", &length, &vec![b' '; 79 * KIB])).collect();
    eventually("the budget is full", || server.held_bytes() == 10 * 63 * KIB);
    server.post("large", b"").is(503, "overloaded");
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200, "what is small finds room");
    drop(spinning);
    server.comes_to_rest();
    assert_eq!(server.post("large", b"").body.len(), 80 * KIB);
}

/// As `printf … | nc -N` does.
#[test]
fn a_client_that_ends_its_own_side_gets_its_answer() {
    let server = Server::start(&[("LIMITS_EXEC_TIMEOUT", "300ms")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    for (name, body, status) in [("greet", r#"{"name":"Ada"}"#, 200), ("spin", "", 504), ("nobody", "", 404)] {
        let length = format!("content-length: {}\r\n", body.len());
        let stream = server.begin("POST", &format!("/v1/evaluators/{name}"), &length, body.as_bytes());
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(Answer::of(stream).status, status, "{name}");
    }
    // A body that cannot come any more.
    let stream = server.begin_body(10, 1);
    stream.shutdown(Shutdown::Write).unwrap();
    Answer::of(stream).is(400, "invalid_request");
    server.comes_to_rest();
}

/// A request to another address than the server's first.
fn get(address: &str, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes()).unwrap();
    Answer::of(stream)
}

/// Where `service.admin_listen` is.
fn admin_address(server: &Server) -> String {
    let said = "health, readiness and metrics are here as well";
    server.has_logged(said);
    let log = server.log();
    let line = log.lines().find(|line| line.contains(said)).unwrap();
    let (_, address) = line.split_once("address=").unwrap();
    address.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn operators_have_a_listener_that_answers_while_the_other_is_full() {
    let folder = TempDir::new().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "secret").unwrap();
    let mut server = Server::start(&[
        ("SERVICE_ADMIN_LISTEN", "127.0.0.1:0"),
        ("SERVICE_MAX_CONNECTIONS", "1"),
        ("SERVICE_TOKEN_FILE", tokens.to_str().unwrap()),
        ("POOL_GRACE", "10m"),
        ("LIMITS_EXEC_TIMEOUT", "10m"),
    ]);
    let admin = admin_address(&server);
    let token = "authorization: Bearer secret\r\n";
    let put = server.begin(
        "PUT",
        "/v1/evaluators/spin",
        &format!("{token}content-length: {}\r\n", wasm(SPIN).len()),
        &wasm(SPIN),
    );
    assert_eq!(Answer::of(put).status, 201);
    let spins = server.begin("POST", "/v1/evaluators/spin", &format!("{token}content-length: 0\r\n"), b"");
    server.has_logged("evalpool::plugin: !");
    // Idle ones do not lock operators out of it, as many as there are.
    let idle: Vec<_> = (0..100).map(|_| TcpStream::connect(&admin).unwrap()).collect();
    for _ in 0..3 {
        assert_eq!(get(&admin, "/healthz", "").text(), "alive\n");
        assert_eq!(get(&admin, "/readyz", "").text(), "ready\n");
        assert!(get(&admin, "/metrics", token).text().contains("\nevalpool_http_connections 1\n"));
    }
    get(&admin, "/metrics", "").is(401, "unauthorized");
    get(&admin, "/v1/evaluators", token).is(404, "not_found");
    // The listener of all others is full, and keeps its routes.
    let waits = server.begin("GET", "/healthz", "connection: close\r\n", b"");
    drop(spins);
    assert_eq!(Answer::of(waits).status, 200);
    let spins = server.begin("POST", "/v1/evaluators/spin", &format!("{token}content-length: 0\r\n"), b"");
    eventually("the other guest runs", || server.log().matches("evalpool::plugin: !").count() == 2);
    server.signal("TERM");
    eventually("it says that it drains", || get(&admin, "/readyz", "").status == 503);
    assert_eq!(get(&admin, "/healthz", "").status, 200);
    drop((spins, idle));
    assert!(server.ended().success());
}

#[test]
fn settings_that_cannot_work_are_named_at_start() {
    let ended = |settings: &[(&str, &str)]| {
        let folder = TempDir::new().unwrap();
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path());
        command.envs(settings.iter().map(|(name, value)| (format!("EVALPOOL_{name}"), *value)));
        let Output { status, stderr, .. } = command.output().unwrap();
        assert_eq!(status.code(), Some(2));
        String::from_utf8(stderr).unwrap()
    };
    for (settings, says) in [
        (&[("SERVICE_BODY_MEMORY", "100MiB")][..], "service.body_memory is 100 MiB; with these limits"),
        (&[("LIMITS_PLUGIN_SIZE", "256MiB")], "it must be at least 512.5 MiB"),
        (&[("SERVICE_TRANSFER_RATE", "0")], "service.transfer_rate is 0; it must be at least 1"),
        (&[("SERVICE_TRANSFER_TIMEOUT", "0s")], "service.transfer_timeout is 0s; it must be longer"),
        (
            &[("SERVICE_ADMIN_LISTEN", "0.0.0.0:0")],
            "0.0.0.0:0 can be reached from other machines; set service.token_file",
        ),
        (&[("SERVICE_ADMIN_LISTEN", "192.0.2.1:1"), ("SERVICE_TOKEN_FILE", "/dev/null")], "holds no token"),
        (&[("SERVICE_ADMIN_LISTEN", "somewhere")], "service.admin_listen"),
    ] {
        let said = ended(settings);
        assert!(said.contains(says), "{settings:?} says {said:?}");
        assert_eq!(said.lines().count(), 1, "{said:?}");
    }
}
