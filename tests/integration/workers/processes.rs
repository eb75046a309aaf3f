//! Compile workers as processes of the running program: what kills, stops and starves them.

use std::{fs, process::Command, thread, time::Duration};

use evalpool::{
    PoolBuilder,
    config::{CodeCache, EngineKind},
    engine::{CompileWorkerCounts, Ended},
};
use tokio::runtime::Handle;

use super::bombs;
use crate::{
    service::{Server, eventually, program},
    support::{
        process::{Held, alone, forgetful_threads, settled},
        settings, wasm,
    },
};

/// The numbers of a process's children, dead ones that nobody has waited for among them.
fn children(of: u32) -> Vec<u32> {
    let is_child = |process: &u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // After the name, in parentheses: the state, then the parent.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parent == Some(of)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// The numbers of a process's compile workers.
fn workers(of: u32) -> Vec<u32> {
    let is_worker = |process: &u32| {
        let command = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
        command.contains("evalpool-compile-worker")
    };
    children(of).into_iter().filter(is_worker).collect()
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
fn what_compiles_gives_way_to_what_somebody_waits_for_already() {
    let nice = |process: u32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(16)?.parse().ok()
    };
    let server = Server::start(&[]);
    assert_eq!(server.put("small", &small()).status, 201);
    let workers = workers(server.id());
    assert!(!workers.is_empty() && workers.into_iter().all(|worker| nice(worker) > nice(server.id())));
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

#[test]
fn a_compile_that_meets_the_systems_limit_before_its_own_is_not_the_plugins_fault() {
    let folder = tempfile::TempDir::new().unwrap();
    let plugin = folder.path().join("bomb.wasm");
    fs::write(&plugin, bombs::many_functions()).unwrap();
    let run = |limit: &str| {
        let mut run = Command::new("sh");
        run.args(["-c", &format!(r#"{limit} exec "$0" run "$1""#)]).arg(program().get_program()).arg(&plugin);
        for (setting, value) in [
            ("POOL_CAPACITY", "1"),
            ("POOL_MAX_INSTANCES", "1"),
            ("LIMITS_MEMORY", "1MiB"),
            // On a busy machine a worker gets little.
            ("LIMITS_BUILD_TIMEOUT", "1h"),
        ] {
            run.env(format!("EVALPOOL_{setting}"), value);
        }
        run.env("EVALPOOL_LIMITS_COMPILE_MEMORY", "1GiB").output().unwrap()
    };
    let output = run("ulimit -v 1000000;");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the host is short of something: a compile worker got no memory"), "{said}");
    assert!(said.contains("ulimit -v"), "{said}");
}

#[test]
fn beside_four_bombs_on_two_slots_a_server_stays_small_and_only_idle_workers_are_left() {
    const MOST_MIB: usize = 100;

    let server = Server::start(&[("LIMITS_BUILD_TIMEOUT", "1s"), ("POOL_BUILD_CONCURRENCY", "2")]);
    assert_eq!(server.put("small", &small()).status, 201);
    let resident = || Held::by_process(server.id()).resident_mib;
    let before = resident();
    let bombs = [bombs::nested_loops(), bombs::long_function(), bombs::many_functions(), bombs::vectors()];
    let most = thread::scope(|scope| {
        let server = &server;
        let fall = |(at, bomb): (usize, Vec<u8>)| scope.spawn(move || server.put(&format!("bomb-{at}"), &bomb));
        let falling: Vec<_> = bombs.into_iter().enumerate().map(fall).collect();
        let mut most = 0;
        while falling.iter().any(|bomb| !bomb.is_finished()) {
            most = most.max(resident());
            thread::sleep(Duration::from_millis(5));
        }
        for bomb in falling {
            let answer = bomb.join().unwrap();
            // A fast machine may cope with one of them.
            let ended = answer.status == 201 || ["build_timeout", "invalid_plugin"].contains(&&*answer.kind());
            assert!(ended, "{answer:?}");
        }
        most
    });
    assert!(most < before + MOST_MIB, "{before} MiB, then {most} MiB");
    eventually("only idle workers are left", || {
        let workers = workers(server.id());
        workers.len() <= 2 && children(server.id()) == workers && workers.iter().all(|worker| !works(*worker))
    });
    assert_eq!(server.post("small", b"").status, 200);
}

#[test]
fn a_disk_that_is_full_costs_the_kept_code_and_nothing_else() {
    let folder = tempfile::TempDir::new().unwrap();
    let (plugin, cache) = (folder.path().join("small.wasm"), folder.path().join("code"));
    fs::write(&plugin, small()).unwrap();
    let run = |setup: &str| {
        let mut run = Command::new("sh");
        run.args(["-c", &format!(r#"{setup} exec "$0" run "$1""#)]).arg(program().get_program()).arg(&plugin);
        run.env("EVALPOOL_ENGINE_CODE_CACHE", &cache).env("TMPDIR", "/nonexistent");
        let output = run.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (fs::read_dir(&cache).unwrap().count(), String::from_utf8(output.stderr).unwrap())
    };
    // Each write to a file fails, as on a full disk. Pipes have no such limit.
    let (kept, log) = run("trap '' XFSZ; ulimit -f 0;");
    assert_eq!(kept, 0, "no part of a file is left");
    assert!(log.contains("compiled code cannot be kept"), "{log}");
    assert_eq!(run("").0, 1);
}

#[test]
fn when_a_pool_is_gone_no_process_of_its_is_left() {
    if !alone("workers::processes::when_a_pool_is_gone_no_process_of_its_is_left") {
        return;
    }
    let this = std::process::id();
    for closes in [true, false] {
        forgetful_threads().block_on(async {
            let pool = super::pool(|_| {});
            super::runs(&pool, "small", super::small()).await;
            let [idle] = workers(this)[..] else { panic!("one build, one worker") };
            // It dies of something else while it is idle: the next look at it waits for it.
            signal(idle, "KILL");
            eventually("it is counted", || super::counts(&pool).idle == 0);
            assert_eq!((super::ended(&pool, Ended::Crashed), children(this)), (1, vec![]));
            super::runs(&pool, "another", super::bytes(wasm(r#"(module (func (export "run") nop))"#))).await;
            assert_eq!(workers(this).len(), 1);
            if closes {
                pool.close().await;
            }
        });
        eventually("all are gone, and were waited for", || children(this).is_empty());
    }
}

/// How many: each takes some milliseconds, and each 1,000 a new worker.
const IN_A_ROW: u32 = 10_000;

#[test]
#[ignore = "takes most of a minute"]
fn ten_thousand_builds_in_a_row_leave_what_there_was() {
    if !alone("workers::processes::ten_thousand_builds_in_a_row_leave_what_there_was") {
        return;
    }
    forgetful_threads().block_on(async {
        let mut settings = settings(EngineKind::Direct);
        settings.engine.code_cache = CodeCache::Off;
        let pool = PoolBuilder::from(settings).background(Handle::current()).build().unwrap();
        let build = async |at: u32| {
            let text = format!(r#"(module (func (export "run")) (@custom "number" "{at}"))"#);
            pool.evaluator("each", super::bytes(wasm(&text))).unwrap().evaluate("").await.unwrap();
        };
        for at in 0..100 {
            build(at).await;
        }
        let rest = async || {
            settled().await;
            Held::by_this_process()
        };
        let before = rest().await;
        // With the last one, a worker is there again.
        for at in 100..=IN_A_ROW {
            build(at).await;
        }
        let after = rest().await;
        let same = |held: Held| Held { resident_mib: 0, ..held };
        assert_eq!(same(after), same(before));
        assert!(after.resident_mib <= before.resident_mib + 10, "{before:?}, then {after:?}");
        let mut ended = [0; Ended::ALL.len()];
        ended[Ended::Done as usize] = u64::from(IN_A_ROW / 1_000);
        let CompileWorkerCounts { busy, ended: how, .. } = super::counts(&pool);
        assert_eq!((busy, how), (0, ended), "each worker was replaced after 1,000 builds, and none otherwise");
        assert_eq!(children(std::process::id()), workers(std::process::id()));
    });
}
