//! What clients of the server feel beside hostile evaluators: the real program in a process of its own, over real
//! connections. All rounds are in one run and take turns, alone and attacked, so that a change of the machine meets both.
//! Figures are medians of the rounds.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    bombs,
    plugins::wasm,
    report::{Report, figure, median, micros, quantile},
};

/// Hostile callers at once, each with an evaluator of its own.
const ATTACKERS: usize = 4;

/// In milliseconds. The system gives a thread a turn of some milliseconds, whatever its priority, and a call passes through
/// several threads: what is below this is not judged by how short it is alone.
const A_FEW_TURNS: f64 = 5.0;

/// A plugin of the neighbour's, and what it is called with.
const GREET: &[u8] = include_bytes!("../../src/service/greet/greet.wasm");
const INPUT: &[u8] = br#"{"name":"Ada"}"#;

/// What hostile callers do, each again and again.
struct Attack {
    name: &'static str,
    /// The plugin of the attacker of this number.
    plugin: fn(usize) -> Vec<u8>,
    /// Whether they upload it each time, with bytes that are new; else they call it.
    uploads: bool,
    /// Whether the neighbour's warm calls are judged.
    judged: bool,
}

const ATTACKS: [Attack; 5] = [
    Attack { name: "bulk memory", plugin: bulk, uploads: false, judged: true },
    Attack { name: "one bulk instruction a call", plugin: bulk_once, uploads: false, judged: true },
    Attack { name: "endless loops", plugin: endless, uploads: false, judged: true },
    Attack { name: "compile bombs", plugin: bomb, uploads: true, judged: true },
    // Each page that is taken changes the mappings of the process, for which all its threads share a lock of the system's.
    Attack { name: "memory taken page by page", plugin: growing, uploads: false, judged: false },
];

/// Fills or copies its memory, of nearly 64 MiB, `again` or once.
fn bulk_memory(number: usize, again: &str) -> Vec<u8> {
    let instruction = ["fill (i32.const 0) (i32.const 7)", "copy (i32.const 1) (i32.const 0)"][number % 2];
    wasm(&format!(
        r#"(module (memory 900) (global i32 (i32.const {number})) (func (export "run") (result i32)
            (loop $again (memory.{instruction} (i32.const 58900000)) {again}) i32.const 0))"#
    ))
}

fn bulk(number: usize) -> Vec<u8> {
    bulk_memory(number, "(br $again)")
}

fn bulk_once(number: usize) -> Vec<u8> {
    bulk_memory(number, "")
}

fn endless(number: usize) -> Vec<u8> {
    wasm(&format!(r#"(module (global i32 (i32.const {number})) (func (export "run") (loop br 0)))"#))
}

fn bomb(number: usize) -> Vec<u8> {
    if number.is_multiple_of(2) { bombs::nested_loops() } else { bombs::vectors() }
}

/// Writes to each page that it gets, until there are no more.
fn growing(number: usize) -> Vec<u8> {
    wasm(&format!(
        r#"(module (memory 0) (global i32 (i32.const {number})) (func (export "run") (result i32) (local $page i32)
            (loop $more
                (if (i32.ne (local.tee $page (memory.grow (i32.const 1))) (i32.const -1)) (then
                    (i32.store (i32.mul (local.get $page) (i32.const 65536)) (i32.const 1))
                    (br $more))))
            i32.const 0))"#
    ))
}

/// The module, and behind it a custom section that no other has.
fn own(module: &[u8]) -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    [module, &[0, 9, 0], &NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes()].concat()
}

/// The program. It ends with this.
struct Server {
    child: Child,
    address: String,
    _folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_evalpool"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EVALPOOL_") {
                command.env_remove(name);
            }
        }
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data"));
        // Bombs hold both slots for a second at most.
        command.env("EVALPOOL_LIMITS_EXEC_TIMEOUT", "1s").env("EVALPOOL_LIMITS_BUILD_TIMEOUT", "1s");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.trim().strip_prefix("evalpool listens on http://").expect("the server listens").to_owned();
        Self { child, address, _folder: folder }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::new(stream))
    }

    /// How long `once`, which tells it, takes on a connection of its own; sorted. Again and again, with this pause.
    fn every(&self, pause: Duration, length: Duration, once: impl Fn(&mut Client) -> Duration) -> Vec<Duration> {
        let (mut client, mut took, began) = (self.connect(), Vec::new(), Instant::now());
        while took.is_empty() || began.elapsed() < length {
            took.push(once(&mut client));
            thread::sleep(pause);
        }
        took.sort();
        took
    }

    fn felt(&self, length: Duration) -> Felt {
        let warm = |client: &mut Client| client.timed(200, "POST", "/v1/evaluators/greet", INPUT);
        let health = |client: &mut Client| client.timed(200, "GET", "/healthz", b"");
        let cold = |client: &mut Client| {
            let began = Instant::now();
            // On a busy machine a second may be too short for this one too.
            while !(client.put("cold", &own(GREET)) && client.ask("POST", "/v1/evaluators/cold", INPUT) == 200) {}
            began.elapsed()
        };
        thread::scope(|scope| {
            let warm = scope.spawn(|| self.every(Duration::from_millis(1), length, warm));
            let cold = scope.spawn(|| self.every(Duration::from_millis(100), length, cold));
            let health = self.every(Duration::from_millis(5), length, health);
            let [warm, cold] = [warm, cold].map(|measured| measured.join().unwrap());
            Felt { warm: quantile(&warm, 990), cold: quantile(&cold, 1000), health: quantile(&health, 1000) }
        })
    }

    fn felt_beside(&self, attack: &Attack, length: Duration) -> Felt {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..ATTACKERS {
                let stop = &stop;
                scope.spawn(move || {
                    let (mut client, name) = (self.connect(), format!("hostile-{number}"));
                    let path = format!("/v1/evaluators/{name}");
                    let plugin = (attack.plugin)(number);
                    assert!(attack.uploads || client.put(&name, &plugin), "{}", attack.name);
                    while !stop.load(Ordering::Relaxed) {
                        if attack.uploads {
                            // What was too much is remembered.
                            client.put(&name, &own(&plugin));
                        } else {
                            client.ask("POST", &path, b"");
                        }
                    }
                });
            }
            thread::sleep(length / 3);
            let felt = self.felt(length);
            stop.store(true, Ordering::Relaxed);
            felt
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection.
struct Client(BufReader<TcpStream>);

impl Client {
    /// The answer's status.
    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> u16 {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/wasm\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
        let (mut line, mut status, mut length) = (String::new(), 0, 0);
        while line != "\r\n" {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the server closes in the middle of an answer");
            if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.trim().parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
        }
        self.0.read_exact(&mut vec![0; length]).unwrap();
        status
    }

    fn timed(&mut self, expected: u16, method: &str, path: &str, body: &[u8]) -> Duration {
        let began = Instant::now();
        assert_eq!(self.ask(method, path, body), expected, "{path}");
        began.elapsed()
    }

    /// Whether the plugin was taken.
    fn put(&mut self, name: &str, plugin: &[u8]) -> bool {
        self.ask("PUT", &format!("/v1/evaluators/{name}"), plugin) < 300
    }
}

/// How long the neighbour's warm calls take, 99 of 100; and the longest of its cold ones, which are an upload and a call
/// of a plugin that was never compiled, and of the server's health.
struct Felt {
    warm: Duration,
    cold: Duration,
    health: Duration,
}

pub(crate) fn beside_hostile(report: &mut Report, length: Duration) {
    let (rounds, length) = (if report.judges { 5 } else { 1 }, length / 3);
    let server = Server::start();
    server.felt(length / 4);
    let rounds: Vec<_> = (0..rounds)
        .map(|_| (server.felt(length), ATTACKS.each_ref().map(|attack| server.felt_beside(attack, length))))
        .collect();
    let millis = |figure: Duration| micros(figure) / 1e3;
    let alone = |figure: fn(&Felt) -> Duration| median(rounds.iter().map(|(alone, _)| millis(figure(alone))));
    println!("over HTTP, beside {ATTACKERS} hostile evaluators");
    let [warm, cold, health] = [alone(|felt| felt.warm), alone(|felt| felt.cold), alone(|felt| felt.health)];
    figure("  alone", &format!("warm p99 {warm:.2} ms, cold {cold:.0} ms, health {health:.1} ms at most"));
    for (at, Attack { name, judged, .. }) in ATTACKS.iter().enumerate() {
        let beside = |figure: fn(&Felt) -> Duration| median(rounds.iter().map(|(_, all)| millis(figure(&all[at]))));
        let (warm, cold, health) = (beside(|felt| felt.warm), beside(|felt| felt.cold), beside(|felt| felt.health));
        let times = median(rounds.iter().map(|(alone, all)| all[at].warm.as_secs_f64() / alone.warm.as_secs_f64()));
        let given = format!("warm p99 {warm:.2} ms, {times:.1} x alone");
        let what = format!("  {name}");
        if *judged {
            report.judged(&what, &given, "at most 3 x, or 5 ms", times <= 3.0 || warm <= A_FEW_TURNS);
        } else {
            figure(&what, &given);
        }
        report.judged("    a cold call", &format!("{cold:.0} ms at most"), "at most 2000 ms", cold <= 2000.0);
        report.judged("    /healthz", &format!("{health:.1} ms at most"), "at most 50 ms", health <= 50.0);
    }
}
