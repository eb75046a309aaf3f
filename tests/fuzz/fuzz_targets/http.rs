//! What clients send: bytes to a server on loopback, the one that `evalpool serve` is, on the `direct` engine.
//!
//! An input that holds no carriage return is a request as people write it: lines end in `\r\n` up to the first empty one,
//! a body that is WAT becomes the binary, and `content-length: *` is filled in. Any other input is sent as it is.
//!
//! The answers must be whole, of a documented status, and problems where they are refusals. Every so often all
//! evaluators are deleted, and nothing may be left then.

#![cfg_attr(fuzzing, no_main)]

use std::{
    fs,
    io::{ErrorKind::Interrupted, ErrorKind::TimedOut, ErrorKind::WouldBlock, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::exit,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use evalpool::service::{Program, exporter};
use evalpool_fuzz::{TICK, TICKS, fuzz};
use tempfile::TempDir;

fuzz!(http);

/// Requests after which all evaluators are deleted.
const ROUND: u32 = 500;

/// How long an answer may be waited for before the client gives up, which is no failure: what looks like a whole
/// request may be none.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long nothing comes before the client takes it that there is no more.
const QUIET: Duration = Duration::from_millis(5);

/// Of answers, as documented, less 500, and hyper's own for heads that cannot be read.
const STATUSES: [u16; 19] =
    [100, 200, 201, 204, 400, 404, 405, 408, 409, 412, 413, 414, 415, 422, 429, 431, 503, 504, 505];

const SETTINGS: &str = r#"
[pool]
capacity = 4
max_instances = 8
max_instances_per_evaluator = 2
grace = "20ms"
max_waiting = 8
[limits]
plugin_size = "256KiB"
input_size = "64KiB"
output_size = "64KiB"
memory = "2MiB"
table_elements = 1000
build_timeout = "300ms"
wait_timeout = "200ms"
exec_timeout = "20ms"
[engine]
kind = "direct"
code_cache_size = "1MiB"
[service]
max_connections = 8
[log]
level = "error"
"#;

/// In place of the built-in evaluator, once that is deleted.
const GREET: &[u8] = br#"PUT /v1/evaluators/greet HTTP/1.1
host: x
content-type: application/wasm
content-length: *

(module (import "extism:host/env" "input_offset" (func $at (result i64)))
    (import "extism:host/env" "input_length" (func $length (result i64)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (func (export "greet") (call $output (call $at) (call $length))))"#;

struct Server {
    address: SocketAddr,
    _folder: TempDir,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, data) = (folder.path().join("settings.toml"), folder.path().join("data"));
    fs::write(&file, SETTINGS).expect("a file");
    // Free a moment ago, and nobody but this process is likely to want it.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let arguments = ["evalpool".into(), "serve".into(), "--config".into(), file.into_os_string()];
    let listen = ["--listen".into(), address.to_string().into(), "--data".into(), data.into_os_string()];
    let program = Program::parse(arguments.into_iter().chain(listen)).expect("flags that exist");
    let exporter = exporter::install().expect("the first recorder");
    thread::spawn(move || match program.run(exporter) {
        // By a signal: the server's handlers have replaced the fuzzer's.
        Ok(()) => exit(0),
        Err(why) => panic!("the server ended: {why:?}"),
    });
    for _ in 0..TICKS {
        if TcpStream::connect(address).is_ok() {
            return Server { address, _folder: folder };
        }
        thread::sleep(TICK);
    }
    panic!("the server does not listen");
});

fn http(input: &[u8]) {
    static REQUESTS: AtomicU32 = AtomicU32::new(0);

    let request = if input.contains(&b'\r') { input.to_vec() } else { written(input) };
    for answer in answers(&exchange(&request)) {
        assert_documented(&answer);
    }
    // Who looks for leaks does not look at the stacks of guests: what those hold would seem lost.
    wait_until_zero(&[r#"evalpool_slots_live{kind="stack"}"#], "a guest runs on whose client has left");
    if REQUESTS.fetch_add(1, Ordering::Relaxed) % ROUND == ROUND - 1 {
        clear();
    }
}

/// A request as it is sent, from how it is written.
fn written(input: &[u8]) -> Vec<u8> {
    let end = input.windows(2).position(|window| window == b"\n\n");
    let (head, body) = end.map_or((input, &b""[..]), |at| (&input[..at], &input[at + 2..]));
    let body = match str::from_utf8(body).ok().filter(|text| text.starts_with('(')).map(wat::parse_str) {
        Some(Ok(binary)) => binary,
        _ => body.to_vec(),
    };
    let mut request = Vec::new();
    for line in head.split(|byte| *byte == b'\n') {
        match line {
            b"content-length: *" => request.extend(format!("content-length: {}", body.len()).into_bytes()),
            line => request.extend_from_slice(line),
        }
        request.extend_from_slice(b"\r\n");
    }
    if end.is_some() {
        request.extend_from_slice(b"\r\n");
        request.extend(body);
    }
    request
}

/// Whether a request may be answered as it is, as far as that can be told from afar.
fn looks_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let body = &request[end + 4..];
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None => !head.contains("chunked") || body.ends_with(b"0\r\n\r\n"),
    }
}

/// All that the server answers. It must close the connection when this side has nothing more to say.
fn exchange(request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(SERVER.address).expect("the server listens");
    let _ = stream.set_nodelay(true);
    // A server that refuses may close before it has read all.
    let _ = stream.write_all(request);
    let mut received = Vec::new();
    let pipelined = request.windows(8).filter(|window| window.starts_with(b"HTTP/1.")).count() > 1;
    let mut waited = Duration::ZERO;
    let patience = if looks_whole(request) { PATIENCE } else { QUIET };
    while waited < patience {
        match read(&mut stream, &mut received, QUIET) {
            Came::Ended => return received,
            Came::More if !pipelined && is_whole(&received) => break,
            Came::More => {}
            Came::Nothing if received.is_empty() => waited += QUIET,
            Came::Nothing => break,
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    for _ in 0..TICKS {
        if matches!(read(&mut stream, &mut received, TICK), Came::Ended) {
            return received;
        }
    }
    panic!("the server keeps a connection whose client has left");
}

enum Came {
    More,
    Nothing,
    Ended,
}

fn read(stream: &mut TcpStream, received: &mut Vec<u8>, wait: Duration) -> Came {
    let mut some = [0; 16 << 10];
    stream.set_read_timeout(Some(wait)).expect("a time that is not zero");
    match stream.read(&mut some) {
        Ok(0) => Came::Ended,
        Ok(length) => {
            received.extend_from_slice(&some[..length]);
            Came::More
        }
        Err(error) if [WouldBlock, TimedOut, Interrupted].contains(&error.kind()) => Came::Nothing,
        // Reset: what was not read is of no interest to either.
        Err(_) => Came::Ended,
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// The answers in what was received, one after another. The last may be cut short: its request's client had left.
fn answers(received: &[u8]) -> Vec<Answer> {
    let (mut answers, mut rest) = (Vec::new(), received);
    while let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "));
        let status = status.and_then(|line| line.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no answer of HTTP's: {head:?}"));
        let mut answer = Answer { status, head, body: Vec::new() };
        // What answers HEAD has a length and no body.
        if !rest.starts_with(b"HTTP/1.") {
            let length = answer.header("content-length").map_or(0, |length| length.parse().expect("a number"));
            let (body, next) = rest.split_at(rest.len().min(length));
            answer.body = body.to_vec();
            rest = next;
        }
        answers.push(answer);
    }
    answers
}

/// Whether the last answer has all of its body.
fn is_whole(received: &[u8]) -> bool {
    let last = answers(received).pop();
    last.is_some_and(|last| {
        last.status != 100 && last.header("content-length").is_none_or(|length| length == last.body.len().to_string())
    })
}

fn assert_documented(answer: &Answer) {
    let Answer { status, head, body } = answer;
    let shown = || format!("{head}\n\n{}", String::from_utf8_lossy(body));
    // A plugin that takes requests chooses its answer, which tells how long it ran.
    if answer.header("server-timing").is_some() {
        assert!((200..600).contains(status), "{}", shown());
        return;
    }
    assert!(STATUSES.contains(status), "{}", shown());
    // Without a body it is hyper that could not read the head, or an answer to HEAD.
    let whole = answer.header("content-length").is_some_and(|length| length == body.len().to_string());
    if *status < 400 || body.is_empty() || !whole {
        return;
    }
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", shown());
    let text = String::from_utf8_lossy(body);
    for part in [r#""kind":""#, r#""detail":""#, r#""title":""#, &format!(r#""status":{status}"#)] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("internal") || !text.contains(r#""kind":"internal""#), "{text}");
}

/// The status and body that a whole answer has.
fn ask(method: &str, path: &str) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(SERVER.address).expect("the server listens");
    stream.write_all(request.as_bytes()).expect("a request that is read");
    let mut received = Vec::new();
    for _ in 0..TICKS {
        if matches!(read(&mut stream, &mut received, TICK), Came::Ended) {
            let answer = answers(&received).pop().unwrap_or_else(|| panic!("{method} {path} is not answered"));
            return (answer.status, String::from_utf8_lossy(&answer.body).into_owned());
        }
    }
    panic!("{method} {path} hangs");
}

/// Waits until all metrics that begin like one of these are 0.
fn wait_until_zero(names: &[&str], otherwise: &str) {
    for _ in 0..TICKS {
        let (_, metrics) = ask("GET", "/metrics");
        let is_left = |line: &str| names.iter().any(|name| line.starts_with(name)) && !line.ends_with(" 0");
        if !metrics.lines().any(is_left) {
            return;
        }
        thread::sleep(TICK);
    }
    panic!("{otherwise}");
}

/// Deletes every evaluator, and looks whether anything is left of them.
fn clear() {
    assert_eq!(ask("GET", "/healthz").0, 200);
    loop {
        let (status, list) = ask("GET", "/v1/evaluators?limit=1000");
        assert_eq!(status, 200, "{list}");
        let names: Vec<&str> =
            list.split(r#""name":""#).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)).collect();
        if names.is_empty() {
            break;
        }
        for name in names {
            let (status, text) = ask("DELETE", &format!("/v1/evaluators/{}", name.replace('/', "%2F")));
            // A request whose client has left may have deleted it.
            assert!([204, 404].contains(&status), "{name}: {status} {text}");
        }
    }
    let gauges = ["evalpool_runtimes_live{", "evalpool_slots_live{", "evalpool_waiting{", "evalpool_instances_live{"];
    wait_until_zero(&gauges, "something is left of evaluators that were deleted");
    // The evaluator that most inputs are meant for.
    exchange(&written(GREET));
}
