//! `pool.memory` under a mixed load: 300 plugins from a kilobyte to 15 MB, called by Zipf's law, on a server that has
//! 256 MiB for them and, in turns, on one that has room for all. Prints what each held and answered.
//!
//! ```text
//! cargo bench --bench memory                # for two minutes; with --short, for a third of that
//! cargo bench --bench memory -- --check     # exits with 1 when the bound or an answer is missed
//! cargo bench --bench memory -- --test      # for a moment, with few plugins, and nothing is judged
//! ```
//!
//! The bound: the server's process never holds more than 1.15 × (`pool.memory` + what it held before the first plugin).
//! Compile workers are processes of their own, with bounds of their own.

use std::{
    collections::HashMap,
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 256 * MIB;

const LETTERS: [char; 5] = ['v', 'w', 'x', 'y', 'z'];

/// Callers at once.
const CALLERS: u64 = 8;

/// Plugins as people have them, with an input.
const REAL: [(&str, &str); 4] = [
    ("src/service/greet/greet.wasm", r#"{"name":"Ada"}"#),
    ("tests/plugins/c/text.wasm", "a pool of plugins"),
    ("tests/plugins/assemblyscript/words.wasm", "a pool of plugins"),
    ("tests/plugins/rust/totals.wasm", r#"{"items":[{"price":2.5,"qty":4}]}"#),
];
const ENTRIES: [&str; 4] = ["greet", "count_vowels", "word_count", "transform"];

/// The program as a process of its own.
struct Server {
    child: Child,
    address: String,
    /// What it held before the first plugin.
    at_rest: u64,
    most: AtomicU64,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(memory: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_evalpool"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.path().join("data"))
            .env("EVALPOOL_POOL_MEMORY", memory.to_string())
            .env("EVALPOOL_POOL_CAPACITY", "1000")
            .env("EVALPOOL_LIMITS_BUILD_TIMEOUT", "5m")
            .env("EVALPOOL_LIMITS_WAIT_TIMEOUT", "5m")
            .env("EVALPOOL_LIMITS_EXEC_TIMEOUT", "5m")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.trim().strip_prefix("evalpool listens on ").expect("it listens").to_owned();
        let mut server = Self { child, address, at_rest: 0, most: AtomicU64::new(0), _folder: folder };
        server.at_rest = server.resident();
        server
    }

    /// What the system keeps in memory for it: anonymous pages, those of files on a disk, and all bytes of files without a
    /// name, whether they are mapped or not.
    fn resident(&self) -> u64 {
        let proc = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let kib = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let open = fs::read_dir(format!("{proc}/fd")).unwrap().flatten().map(|file| file.path());
        let unnamed =
            open.filter(|file| fs::read_link(file).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"/memfd:")));
        let files: HashMap<u64, u64> =
            unnamed.filter_map(|file| fs::metadata(file).ok()).map(|file| (file.ino(), file.blocks() * 512)).collect();
        (kib("RssAnon:") + kib("RssFile:")) * 1024 + files.values().sum::<u64>()
    }

    /// Looks how much it holds, all the time that the work takes.
    fn watched(&self, work: impl FnOnce()) {
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.most.fetch_max(self.resident(), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(20));
                }
            });
            // Also when the work panics.
            let _over = Over(&over);
            work();
        });
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    fn put(&self, agent: &ureq::Agent, number: usize, plugin: &[u8], entry: &str) {
        let url = format!("{}/v1/evaluators/{number}?entry_point={entry}", self.address);
        let answer = agent.put(url).header("content-type", "application/wasm").send(plugin);
        let mut answer = answer.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.body_mut().read_to_string().unwrap());
    }

    fn metrics(&self, agent: &ureq::Agent, wanted: &[&str]) -> Vec<String> {
        let text = agent.get(format!("{}/metrics", self.address)).call().unwrap().body_mut().read_to_string().unwrap();
        text.lines().filter(|line| wanted.iter().any(|wanted| line.starts_with(wanted))).map(str::to_owned).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A plugin of about this size: a twelfth is code, the rest is data that its memory begins with.
fn generated(number: usize, size: usize) -> Vec<u8> {
    let mut text = String::from(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))"#,
    );
    for function in 0..size / 12 / 60 {
        let (a, b) = (function * 7 + number, function * 13 + 1);
        let _ = write!(
            text,
            "(func (param i32) (result i32) (local i32) (loop (local.set 1 (i32.add (local.get 1) (i32.mul (local.get 0) \
             (i32.const {a})))) (br_if 0 (i32.lt_u (local.get 1) (i32.const {b})))) (i32.xor (local.get 1) (i32.const {a})))"
        );
    }
    let data = size - size / 12;
    let _ = write!(text, "(memory {}) (data (i32.const 0) \"{number:08}", data / 65_536 + 2);
    text.extend((8..data).map(|at| LETTERS[at * (number + 3) / 97 % LETTERS.len()]));
    text += r#"") (func (export "run") (call $output (call $alloc (i64.const 3)) (i64.const 3))))"#;
    wat::parse_str(&text).unwrap()
}

/// From a kilobyte to 15 MB, most of them small, in no order; each fourth is a real one with bytes of its own.
fn plugin(number: usize, count: usize) -> (Vec<u8>, &'static str, &'static str) {
    if number.is_multiple_of(4) {
        let (file, input) = REAL[number / 4 % 4];
        let mut wasm = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let name = format!("{number:08}");
        // A custom section.
        wasm.extend([0, 9, 8]);
        wasm.extend(name.as_bytes());
        return (wasm, ENTRIES[number / 4 % 4], input);
    }
    let part = number * 7919 % count;
    // 1.03 to the 325th is 15,000.
    let size = (0..325 * part.pow(3) / count.pow(3)).fold(1_000, |size, _| size * 103 / 100);
    (generated(number, size), "run", "")
}

/// How often each is called, summed up.
fn zipf(count: usize) -> Vec<f64> {
    let mut sum = 0.0;
    (1..=count)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect()
}

/// Calls for a while; gives the answers, and what else came.
fn calls(
    server: &Server,
    inputs: &[&str],
    ranks: &[f64],
    seed: u64,
    length: Duration,
    errors: &Mutex<Vec<String>>,
) -> u64 {
    let (end, answers) = (Instant::now() + length, AtomicU64::new(0));
    let call = |agent: &ureq::Agent, number: usize| match agent
        .post(format!("{}/v1/evaluators/{number}", server.address))
        .send(inputs[number])
    {
        Ok(answer) if answer.status() == 200 => drop(answers.fetch_add(1, Ordering::Relaxed)),
        Ok(mut answer) => errors.lock().unwrap().push(answer.body_mut().read_to_string().unwrap()),
        Err(error) => errors.lock().unwrap().push(error.to_string()),
    };
    server.watched(|| {
        thread::scope(|scope| {
            for caller in 0..CALLERS {
                let call = &call;
                scope.spawn(move || {
                    let agent = agent();
                    let mut random = SmallRng::seed_from_u64(seed * CALLERS + caller);
                    while Instant::now() < end {
                        let at = random.random_range(0.0..ranks[ranks.len() - 1]);
                        call(&agent, ranks.partition_point(|sum| *sum < at).min(inputs.len() - 1));
                    }
                });
            }
        });
    });
    answers.into_inner()
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().into()
}

fn main() -> ExitCode {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let brief = has("--test");
    let (count, rounds, length) = match (brief, has("--short")) {
        (true, _) => (12, 1, Duration::from_millis(500)),
        (_, short) => (300, if short { 2 } else { 6 }, Duration::from_secs(10)),
    };
    let servers = [("256 MiB", Server::start(MEMORY)), ("room for all", Server::start(64 << 30))];
    let mut inputs = vec![""; count];
    let (mut bytes, mut largest) = (0, 0);
    servers[0].1.watched(|| {
        let agent = agent();
        for (number, wanted) in inputs.iter_mut().enumerate() {
            let (wasm, entry, input) = plugin(number, count);
            *wanted = input;
            bytes += wasm.len();
            largest = largest.max(wasm.len());
            for (_, server) in &servers {
                server.put(&agent, number, &wasm, entry);
            }
        }
    });
    println!("{count} plugins, {} MiB in all, the largest {:.1} MiB", bytes as u64 / MIB, largest as f64 / MIB as f64);
    println!("uploads: most held {} MiB", servers[0].1.most() / MIB);
    let (ranks, errors) = (zipf(count), Mutex::default());
    let mut answers = [0, 0];
    for round in 0..rounds {
        for (at, (_, server)) in servers.iter().enumerate() {
            answers[at] += calls(server, &inputs, &ranks, round, length, &errors);
        }
    }
    let errors = errors.into_inner().unwrap();
    for ((name, server), answers) in servers.iter().zip(answers) {
        let seconds = length.as_secs_f64() * rounds as f64;
        let (most, at_rest) = (server.most(), server.at_rest);
        println!(
            "{name}: {:.0} answers a second; at rest {} MiB, most held {} MiB",
            answers as f64 / seconds,
            at_rest / MIB,
            most / MIB
        );
        for line in server.metrics(
            &agent(),
            &[
                "evalpool_evictions_total",
                "evalpool_memory_bytes",
                "evalpool_builds_total{outcome=\"ok",
                "evalpool_runtimes_live{state=\"live",
            ],
        ) {
            println!("    {line}");
        }
    }
    let bounded = &servers[0].1;
    let bound = (MEMORY + bounded.at_rest) as f64 * 1.15;
    let within = bounded.most() as f64 <= bound;
    println!("bound: {:.0} MiB, {}", bound / MIB as f64, if within { "held" } else { "missed" });
    println!("throughput: {:.2} of that with room for all", answers[0] as f64 / answers[1] as f64);
    println!(
        "{} errors{}",
        errors.len(),
        errors.first().map_or(String::new(), |first| format!(", the first: {first}"))
    );
    if has("--check") && !(within && errors.is_empty()) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
