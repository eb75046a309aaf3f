//! The program as a process of its own, and a client that talks to it.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{answer::Answer, openapi};
use crate::support::process::{FRUGAL, Held};

/// Far longer than anything here takes, however busy the machine is.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);

/// The program as a process of its own, on a port that was free.
pub(crate) struct Server {
    child: Child,
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
    pub(super) data: PathBuf,
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

impl Server {
    /// With the defaults and these settings: `("POOL_CAPACITY", "1")`.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_command(program(), settings)
    }

    /// The same in a process whose allocator keeps little back for later.
    pub(crate) fn start_frugal(settings: &[(&str, &str)]) -> Self {
        let mut command = program();
        command.envs(FRUGAL);
        Self::start_command(command, settings)
    }

    /// The same by a command that takes the program's arguments.
    pub(super) fn start_command(command: Command, settings: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let mut server = Self::start_as(command, folder.path(), settings);
        server.folder = Some(folder);
        server
    }

    pub(super) fn start_in(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_as(program(), folder, settings)
    }

    pub(super) fn start_as(command: Command, folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::listen(command, "127.0.0.1:0", folder, settings)
    }

    /// At this address.
    pub(super) fn start_on(address: &str, folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::listen(program(), address, folder, settings)
    }

    fn listen(mut command: Command, address: &str, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let data = folder.join("data");
        command.args(["serve", "--listen", address, "--data"]).arg(&data).env("EVALPOOL_LOG_LEVEL", "debug");
        // No machine is too slow for these. What is to meet a deadline has a shorter one of its own.
        let patient = ["EXEC", "BUILD", "WAIT"].map(|what| (format!("LIMITS_{what}_TIMEOUT"), "2m"));
        let patient = patient.iter().map(|(setting, value)| (setting.as_str(), *value));
        for (setting, value) in patient.chain(settings.iter().copied()) {
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

    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).allow_non_standard_methods(true).build().into();
        let response = if body.is_empty() && !["PUT", "POST", "PATCH"].contains(&method) {
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
        openapi::check(method, path, &answer);
        answer
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, name: &str, input: &[u8]) -> Answer {
        self.request("POST", &format!("/v1/evaluators/{name}"), &[], input)
    }

    /// `name` with whatever query.
    pub(crate) fn put(&self, name: &str, plugin: &[u8]) -> Answer {
        self.request("PUT", &format!("/v1/evaluators/{name}"), &[("content-type", "application/wasm")], plugin)
    }

    /// An upload in parts.
    pub(super) fn put_form(&self, name: &str, parts: &[(&str, &[u8])]) -> Answer {
        self.put_form_if(name, &[], parts)
    }

    /// The same with more headers.
    pub(super) fn put_form_if(&self, name: &str, headers: &[(&str, &str)], parts: &[(&str, &[u8])]) -> Answer {
        let mut body = Vec::new();
        for (name, bytes) in parts {
            let head = format!("--b0undary\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"x\"\r\n\r\n");
            body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
        }
        body.extend(b"--b0undary--\r\n");
        let form = ("content-type", "multipart/form-data; boundary=b0undary");
        self.request("PUT", &format!("/v1/evaluators/{name}"), &[&[form], headers].concat(), &body)
    }

    /// Changes a spec by a merge patch.
    pub(super) fn patch(&self, name: &str, headers: &[(&str, &str)], patch: &str) -> Answer {
        let kind = ("content-type", "application/merge-patch+json");
        self.request("PATCH", &format!("/v1/evaluators/{name}"), &[&[kind], headers].concat(), patch.as_bytes())
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

    pub(super) fn info(&self, name: &str) -> Value {
        self.get(&format!("/v1/evaluators/{name}")).json()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let list = self.get("/v1/evaluators?limit=1000").json();
        list["evaluators"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The sum over the series of a metric whose labels hold `label`. Only of counts.
    pub(crate) fn metric(&self, name: &str, label: &str) -> u64 {
        let text = String::from_utf8(self.get("/metrics").body).unwrap();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }

    /// Sends a request and leaves the answer unread.
    pub(crate) fn begin(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", self.address);
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    /// Begins an evaluation of `name`, which spins, and waits until its guest does.
    pub(super) fn begin_evaluation(&self, name: &str) -> TcpStream {
        let begun = || self.log().matches("evalpool::plugin: !").count();
        let before = begun();
        let stream = self.begin("POST", &format!("/v1/evaluators/{name}"), "content-length: 0\r\n", b"");
        eventually("the guest runs", || begun() > before);
        stream
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
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

    /// What it has logged so far. Of what it logs at this moment, a thread reads the line a moment later.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until this is in the log.
    pub(super) fn has_logged(&self, text: &str) {
        eventually(&format!("{text} is in the log"), || self.log().contains(text));
    }

    pub(super) fn files(&self, below: &str) -> BTreeSet<String> {
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
