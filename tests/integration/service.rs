//! The server as its clients meet it: the real program, a real HTTP client, real plugins.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use evalpool::{
    Digest, ErrorKind,
    metrics::{CATALOGUE, MetricType},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    CALL_HOST, GREET, NO_ABORT, TEXT, TOTALS,
    process::{FRUGAL, Held},
    wasm,
};

/// Longer than anything here takes, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// Logs `!`, and never ends by itself.
const SPIN: &str = r#"(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "log_info" (func $log (param i64)))
    (func (export "run") (local $at i64)
        (local.set $at (call $alloc (i64.const 1)))
        (call $store (local.get $at) (i32.const 33))
        (call $log (local.get $at))
        (loop (br 0))))"#;

// ---- The server and its client ---------------------------------------------------------------------------------------

/// The program as a process of its own, on a port that was free.
pub(crate) struct Server {
    child: Child,
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
    data: PathBuf,
    log: Arc<Mutex<String>>,
    /// When it is this server's own: it goes with the server.
    folder: Option<TempDir>,
}

/// How one request ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// By kind.
    pub(crate) ended: Result<(), String>,
    pub(crate) status: u16,
    pub(crate) took: Duration,
    /// The answer's body.
    pub(crate) text: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Server {
    /// With the defaults and these settings: `("POOL_CAPACITY", "1")`.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let mut server = Self::start_in(folder.path(), settings);
        server.folder = Some(folder);
        server
    }

    /// The same in a process whose allocator keeps little back for later.
    pub(crate) fn start_frugal(settings: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let mut command = program();
        command.envs(FRUGAL);
        let mut server = Self::start_as(command, folder.path(), settings);
        server.folder = Some(folder);
        server
    }

    fn start_in(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_as(program(), folder, settings)
    }

    fn start_as(mut command: Command, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let data = folder.join("data");
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&data).env("EVALPOOL_LOG_LEVEL", "debug");
        for (setting, value) in settings {
            command.env(format!("EVALPOOL_{setting}"), value);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, shared) = (child.stderr.take().unwrap(), log.clone());
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = shared.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.trim().strip_prefix("evalpool listens on http://").map(str::to_owned);
        let address = address.unwrap_or_else(|| panic!("{first:?}, {}", log.lock().unwrap()));
        Self { child, address, data, log, folder: None }
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).allow_non_standard_methods(true).build().into();
        let response = if body.is_empty() && !["PUT", "POST"].contains(&method) {
            agent.run(request.body(()).unwrap())
        } else {
            agent.run(request.body(body).unwrap())
        };
        let mut response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()));
        let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = response.body_mut().with_config().limit(64 << 20).read_to_vec().unwrap();
        let answer = Answer { status: response.status().as_u16(), headers, body };
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        if answer.status >= 400 && method != "HEAD" {
            answer.assert_is_problem(&self.data);
        }
        answer
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, name: &str, input: &[u8]) -> Answer {
        self.request("POST", &format!("/v1/evaluators/{name}"), &[], input)
    }

    /// `name` with whatever query.
    pub(crate) fn put(&self, name: &str, plugin: &[u8]) -> Answer {
        self.request("PUT", &format!("/v1/evaluators/{name}"), &[("content-type", "application/wasm")], plugin)
    }

    /// Uploads a plugin, evaluates it twice, and deletes it: how each step ended, and after how long. `name` with
    /// whatever query.
    pub(crate) fn outcomes_of(&self, name: &str, plugin: &[u8]) -> Vec<Outcome> {
        let (path, _) = name.split_once('?').unwrap_or((name, ""));
        let timed = |request: &dyn Fn() -> Answer| {
            let began = Instant::now();
            let answer = request();
            let ended = match answer.status {
                200..300 => Ok(()),
                _ => Err(answer.kind()),
            };
            Outcome { ended, status: answer.status, took: began.elapsed(), text: answer.lossy() }
        };
        let uploaded = timed(&|| self.put(name, plugin));
        if uploaded.ended.is_err() {
            return vec![uploaded];
        }
        let came = [&b"x"[..], b"x"].map(|input| timed(&|| self.post(path, input)));
        assert_eq!(self.delete(path).status, 204);
        came.into()
    }

    /// Closes its runtime, if there is one.
    pub(crate) fn unload(&self, name: &str) -> Answer {
        self.delete(&format!("{name}/runtime"))
    }

    pub(crate) fn delete(&self, name: &str) -> Answer {
        self.request("DELETE", &format!("/v1/evaluators/{name}"), &[], b"")
    }

    fn info(&self, name: &str) -> Value {
        self.get(&format!("/v1/evaluators/{name}")).json()
    }

    fn names(&self) -> Vec<String> {
        let list = self.get("/v1/evaluators?limit=1000").json();
        list["evaluators"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The sum over the series of a metric whose labels hold `label`. Only of counts.
    fn metric(&self, name: &str, label: &str) -> u64 {
        let text = String::from_utf8(self.get("/metrics").body).unwrap();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }

    /// Sends a request and leaves the answer unread.
    fn begin(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", self.address);
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    /// Begins an evaluation of `name`, which spins, and waits until its guest does.
    fn begin_evaluation(&self, name: &str) -> TcpStream {
        let begun = || self.log().matches("evalpool::plugin: !").count();
        let before = begun();
        let stream = self.begin("POST", &format!("/v1/evaluators/{name}"), "content-length: 0\r\n", b"");
        eventually("the guest runs", || begun() > before);
        stream
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the server ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// What it holds of the system.
    pub(crate) fn held(&self) -> Held {
        Held::by_process(self.child.id())
    }

    /// Its threads.
    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count()
    }

    /// Runtimes that exist, in whatever state.
    pub(crate) fn runtimes(&self) -> u64 {
        self.metric("evalpool_runtimes_live", "")
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn files(&self, below: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.data.join(below)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, without settings that the tests' own environment may hold.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evalpool"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVALPOOL_") {
            command.env_remove(name);
        }
    }
    command
}

/// Waits until `holds`, looking again and again.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

impl Answer {
    /// Reads what is left on a connection: the answer to its last request, until the server closes or the body is whole.
    fn of(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let whole = |bytes: &[u8]| {
            let (head, body) = split(bytes)?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            (body.len() >= length.parse().unwrap()).then_some(())
        };
        while whole(&bytes).is_none() {
            let mut some = [0; 4096];
            match stream.read(&mut some).unwrap() {
                0 => break,
                more => bytes.extend_from_slice(&some[..more]),
            }
        }
        let (head, body) = split(&bytes).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&bytes)));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { status, headers, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str())
    }

    fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn kind(&self) -> String {
        self.json()["kind"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    /// Whatever is refused is refused in the same words, and never tells where the server keeps its files.
    fn assert_is_problem(&self, data: &Path) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        for text in ["type", "title", "detail", "kind"] {
            assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{text} in {problem}");
        }
        let kind = problem["kind"].as_str().unwrap();
        assert!(ErrorKind::ALL.iter().any(|known| known.as_str() == kind), "{problem}");
        assert!(problem["type"].as_str().unwrap().ends_with(&format!("#{kind}")), "{problem}");
        assert!(!self.text().contains(data.to_str().unwrap()), "{problem}");
        assert_eq!(self.status == 429, self.header("retry-after").is_some(), "{self:?}");
    }

    #[track_caller]
    fn is(&self, status: u16, kind: &str) {
        assert_eq!((self.status, self.kind().as_str()), (status, kind), "{}", String::from_utf8_lossy(&self.body));
    }
}

fn split(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end + 4..].to_vec()))
}

/// A plugin that answers with one letter.
fn letter(letter: char) -> Vec<u8> {
    wasm(&format!(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (func (export "run") (local $at i64)
                (local.set $at (call $alloc (i64.const 1)))
                (call $store (local.get $at) (i32.const {}))
                (call $output (local.get $at) (i64.const 1))))"#,
        u32::from(letter)
    ))
}

// ---- Evaluating ------------------------------------------------------------------------------------------------------

#[test]
fn who_serves_strangers_on_extism_is_warned() {
    for (engine, trusted, warned) in [("extism", "false", true), ("extism", "true", false), ("direct", "false", false)]
    {
        let server = Server::start(&[("ENGINE_KIND", engine), ("ENGINE_TRUSTED", trusted)]);
        // Once it has ended, nothing more is written.
        server.signal("TERM");
        eventually("the log has ended", || server.log().contains("ended"));
        assert_eq!(server.log().contains("see SECURITY.md"), warned, "{engine} {trusted}: {}", server.log());
    }
}

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

    let server = Server::start(&[&one[..], &[("LIMITS_WAIT_TIMEOUT", "100ms")]].concat());
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

// ---- Uploading -------------------------------------------------------------------------------------------------------

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
    assert!(info["instances"].as_u64().is_some_and(|instances| instances >= 1), "{info}");
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

// ---- Bounds on requests ----------------------------------------------------------------------------------------------

#[test]
fn a_body_over_its_limit_is_refused_however_it_is_sent() {
    let server = Server::start(&[("LIMITS_PLUGIN_SIZE", "100KiB"), ("LIMITS_INPUT_SIZE", "50KiB")]);
    for (method, limit) in [("PUT", 100 * 1024), ("POST", 50 * 1024)] {
        let path = "/v1/evaluators/greet";
        // Announced, and not a byte of it sent: answered all the same.
        let announced = server.begin(method, path, &format!("content-length: {}\r\n", limit + 1), b"");
        Answer::of(announced).is(413, "payload_too_large");
        // Not announced.
        let chunk = [format!("{:x}\r\n", limit + 1).as_bytes(), &vec![0; limit + 1], b"\r\n0\r\n\r\n"].concat();
        let chunked = server.begin(method, path, "transfer-encoding: chunked\r\n", &chunk);
        Answer::of(chunked).is(413, "payload_too_large");
        // Sent whole by a client that reads nothing until then: it is answered, not cut off.
        let answer = server.request(method, path, &[], &vec![0; 20 << 20]);
        answer.is(413, "payload_too_large");
        assert!(answer.json()["detail"].as_str().unwrap().contains(&limit.to_string()));
    }
    assert_eq!(server.post("greet", &vec![b' '; 50 * 1024]).kind(), "guest_error", "just within its limit");
    server.put("greet", &vec![0; 100 * 1024]).is(422, "invalid_plugin");
}

#[test]
fn a_refused_request_does_not_cost_the_connection() {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for (request, status) in [
        ("POST /v1/evaluators/nobody HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n", 404),
        ("GET /v1/evaluators/greet HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        ("DELETE /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 200),
    ] {
        stream.write_all(request.as_bytes()).unwrap();
        if request.contains("100000") {
            stream.write_all(&vec![b'x'; 100_000]).unwrap();
        }
        assert_eq!(Answer::of(stream.try_clone().unwrap()).status, status, "{request}");
    }
}

#[test]
fn a_body_that_is_compressed_is_not_taken_for_an_input() {
    let server = Server::start(&[]);
    server.request("POST", "/v1/evaluators/greet", &[("content-encoding", "gzip")], b"{}").is(415, "invalid_request");
    server.request("POST", "/v1/evaluators/greet?timeout=1s", &[], b"{}").is(400, "invalid_request");
}

// ---- Names, lists, routes --------------------------------------------------------------------------------------------

#[test]
fn names_are_held_to_their_rule_on_every_route() {
    let server = Server::start(&[]);
    let long = "n".repeat(128);
    for name in ["a", "A-z_0.9", "team%2Fapp%2Fv1", "%41", &long] {
        assert_eq!(server.put(name, &letter('x')).status, 201, "{name}");
        assert_eq!(server.post(name, b"").text(), "x");
        let decoded = name.replace("%2F", "/").replace("%41", "A");
        assert_eq!(server.info(name)["name"], decoded);
        assert!(server.files("evaluators").contains(&format!("{}.json", decoded.replace('/', "+"))));
        assert_eq!(server.delete(name).status, 204);
    }
    for name in ["a..b", "..", "%2E%2E%2Fetc", "a%20b", "%C3%A9", "%FF", "a%00", "a+b", &"n".repeat(129)] {
        for (method, suffix) in [("PUT", ""), ("POST", ""), ("GET", ""), ("DELETE", ""), ("DELETE", "/runtime")] {
            let path = format!("/v1/evaluators/{name}{suffix}");
            let answer = Answer::of(server.begin(method, &path, "content-length: 0\r\n", b""));
            answer.is(400, "invalid_name");
        }
    }
    assert_eq!(server.names(), ["greet"]);
}

#[test]
fn whoever_is_not_there_is_not_found() {
    let server = Server::start(&[]);
    for (method, path) in [
        ("GET", "/v1/evaluators/nobody"),
        ("POST", "/v1/evaluators/nobody"),
        ("DELETE", "/v1/evaluators/nobody"),
        ("DELETE", "/v1/evaluators/nobody/runtime"),
        ("GET", "/v1/evaluators/a/b"),
        ("GET", "/v1"),
        ("GET", "/v2/evaluators"),
        ("POST", "/metricks"),
    ] {
        server.request(method, path, &[], b"").is(404, "not_found");
    }
}

#[test]
fn a_method_that_a_path_does_not_take_is_told_which_it_does() {
    let server = Server::start(&[]);
    for (method, path, allow) in [
        ("PATCH", "/v1/evaluators/greet", "GET,HEAD,PUT,POST,DELETE"),
        ("POST", "/v1/evaluators", "GET,HEAD"),
        ("GET", "/v1/evaluators/greet/runtime", "DELETE"),
        ("OPTIONS", "/healthz", "GET,HEAD"),
        ("DELETE", "/metrics", "GET,HEAD"),
    ] {
        let answer = server.request(method, path, &[], b"");
        answer.is(405, "invalid_request");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    for path in ["/healthz", "/readyz", "/metrics", "/v1/evaluators", "/v1/evaluators/greet"] {
        let answer = server.request("HEAD", path, &[], b"");
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{path}");
    }
}

#[test]
fn the_list_is_in_the_order_of_names_and_comes_in_pages() {
    let server = Server::start(&[]);
    let plugin = letter('x');
    for name in ["d", "b", "a", "c%2Fd"] {
        assert_eq!(server.put(name, &plugin).status, 201);
    }
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/v1/evaluators?limit=2{after}")).json();
        let names = page["evaluators"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned());
        pages.push(names.collect::<Vec<_>>());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
            None => break,
        }
    }
    assert_eq!(pages, [vec!["a", "b"], vec!["c/d", "d"], vec!["greet"]]);
    let whole = server.get("/v1/evaluators").json();
    assert_eq!((whole["evaluators"].as_array().unwrap().len(), &whole["next"]), (5, &Value::Null));
    for query in ["limit=0", "limit=1001", "limit=x", "offset=1", "limit=1&limit=2"] {
        server.get(&format!("/v1/evaluators?{query}")).is(400, "invalid_request");
    }
}

// ---- Closing ---------------------------------------------------------------------------------------------------------

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

// ---- The folder ------------------------------------------------------------------------------------------------------

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
        assert!(server.log().contains(file), "{}", server.log());
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
    assert!(server.log().contains("cannot be stored"), "{}", server.log());
    eventually("what was built for nobody is closed", || server.metric("evalpool_runtimes_live", "") == 1);
    // The file of a cold plugin is gone: the client learns that it is the server's trouble, and no more.
    assert_eq!(server.delete("kept/runtime").status, 204);
    fs::remove_dir_all(server.data.join("plugins")).unwrap();
    server.post("kept", b"").is(503, "source_unavailable");
}

// ---- Who may, and the end --------------------------------------------------------------------------------------------

#[test]
fn with_a_token_file_only_its_tokens_are_let_in() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens");
    fs::write(&file, "first token\n\n  second \n").unwrap();
    let server = Server::start(&[("SERVICE_TOKEN_FILE", file.to_str().unwrap())]);
    let paths = ["/v1/evaluators", "/v1/evaluators/greet", "/metrics"];
    for path in paths {
        for shown in ["", "Bearer", "Bearer wrong", "Bearer first", "Basic second", "second"] {
            let answer = server.request("GET", path, &[("authorization", shown)], b"");
            answer.is(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
        server.get(path).is(401, "unauthorized");
        for shown in ["Bearer first token", "bearer second"] {
            assert_eq!(server.request("GET", path, &[("authorization", shown)], b"").status, 200, "{shown}");
        }
    }
    server.put("x", &letter('x')).is(401, "unauthorized");
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn every_metric_is_there_before_anything_has_happened() {
    let server = Server::start(&[]);
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    for metric in CATALOGUE {
        let of_type = match metric.kind {
            MetricType::Gauge => "gauge",
            MetricType::Counter => "counter",
            MetricType::Histogram => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {} {of_type}", metric.name)), "{}", metric.name);
    }
    for series in ["process_resident_memory_bytes", "process_threads", "process_cpu_seconds_total", "process_open_fds"]
    {
        assert!(text.lines().any(|line| line.starts_with(series)), "{series}");
    }
    assert_eq!(server.metric("evalpool_evaluators_registered", ""), 1);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    assert!(server.metric("evalpool_evaluation_seconds_bucket", r#"le="+Inf""#) >= 1);
    assert_eq!(server.metric("evalpool_evaluations_total", r#"outcome="ok""#), 1);
}

#[test]
fn a_server_that_is_told_to_end_drains_first() {
    let mut server = Server::start(&[("POOL_GRACE", "30s"), ("LIMITS_EXEC_TIMEOUT", "2s")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    let call = server.begin_evaluation("spin");
    server.signal("TERM");
    eventually("it says that it takes no more", || server.get("/readyz").status == 503);
    server.get("/readyz").is(503, "shutting_down");
    server.post("greet", b"{}").is(503, "shutting_down");
    server.put("x", GREET).is(503, "shutting_down");
    assert_eq!(server.get("/healthz").status, 200, "it is alive");
    // The call in flight ends as it would have.
    Answer::of(call).is(504, "exec_timeout");
    assert!(server.ended().success());
    assert!(TcpStream::connect(&server.address).is_err());
}

#[test]
fn a_call_that_outlasts_the_grace_is_interrupted_and_answered() {
    let mut server = Server::start(&[("POOL_GRACE", "200ms"), ("LIMITS_EXEC_TIMEOUT", "10m")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    let call = server.begin_evaluation("spin");
    server.signal("INT");
    Answer::of(call).is(503, "shutting_down");
    assert!(server.ended().success());
}

#[test]
fn a_second_signal_ends_the_grace() {
    let mut server = Server::start(&[("POOL_GRACE", "10m"), ("LIMITS_EXEC_TIMEOUT", "10m")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    let call = server.begin_evaluation("spin");
    server.signal("TERM");
    eventually("it drains", || server.get("/readyz").status == 503);
    server.signal("TERM");
    Answer::of(call).is(503, "shutting_down");
    assert!(server.ended().success());
}

#[test]
fn a_signal_in_the_middle_of_a_load_ends_in_order() {
    let mut server = Server::start(&[]);
    let (ok, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Until the listener is gone. An answer that has begun comes whole.
                while let Ok(mut stream) = TcpStream::connect(&server.address) {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let request = "POST /v1/evaluators/greet HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                                   content-length: 14\r\n\r\n{\"name\":\"Ada\"}";
                    let mut answer = Vec::new();
                    if stream.write_all(request.as_bytes()).is_err() || stream.read_to_end(&mut answer).is_err() {
                        continue;
                    }
                    match split(&answer) {
                        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => {
                            assert_eq!(body, br#"{"greeting":"Hello, Ada!"}"#);
                            ok.fetch_add(1, Ordering::Relaxed);
                        }
                        Some((head, _)) => {
                            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        // Was never accepted.
                        None => assert!(answer.is_empty()),
                    }
                }
            });
        }
        eventually("the load is on", || ok.load(Ordering::Relaxed) > 50);
        server.signal("TERM");
    });
    assert!(server.ended().success(), "{}", server.log());
    assert!(server.log().contains("ended"));
}
