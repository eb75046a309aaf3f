//! The gallery over HTTP, in a process of its own, which is why what it leaves behind is measured here: in the process of
//! the tests, other tests make threads and mappings of their own meanwhile.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Deadlines, Hostile, LANES, NEIGHBOUR, as_expected, tells_of_the_host, those_that_meet_a_deadline};
use crate::{
    service::{Outcome, Server, eventually},
    support::{GREET, process::Held},
};

#[test]
#[ignore = "slow lane: many plugins, one after another and again, and then threads that have to end"]
fn each_hostile_plugin_comes_to_its_end_over_http_and_leaves_nothing_behind() {
    over_http(those_that_meet_a_deadline(false), "all is lost");
}

#[test]
#[ignore = "slow lane: many deadlines, one after another and again, and then threads that have to end"]
fn each_hostile_plugin_meets_its_deadline_over_http_and_leaves_nothing_behind() {
    over_http(those_that_meet_a_deadline(true), "evalpool::plugin: message");
}

/// Rounds after which the server may hold more than before: sixteen instances have two memories each, whose slots keep at most
/// one MiB, and a server at rest has some 60, of which a tenth is [more](is_resident_as_before).
const MOST_GROWTH: usize = 5;

/// `logged` is a part of what one of them logs.
fn over_http((deadlines, gallery): (Deadlines, Vec<Hostile>), logged: &str) {
    let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
    let server = Server::start_frugal(&[
        ("ENGINE_KIND", "direct"),
        ("POOL_CAPACITY", "8"),
        ("POOL_MAX_INSTANCES", "16"),
        ("POOL_NEGATIVE_TTL", "0s"),
        ("LIMITS_EXEC_TIMEOUT", &milliseconds(deadlines.exec)),
        ("LIMITS_BUILD_TIMEOUT", &milliseconds(deadlines.build)),
        ("LIMITS_OUTPUT_SIZE", "1MiB"),
        ("LIMITS_MEMORY", "8MiB"),
        ("LIMITS_TABLE_ELEMENTS", "10000"),
    ]);
    let mut wrong = Vec::new();
    let mut round = || {
        for isolation in ["fresh", "reuse"] {
            wrong.extend(wrong_beside_a_neighbour(&server, isolation, deadlines, &gallery));
        }
        at_rest(&server)
    };
    // What is taken once and kept, is so after the first. What leaks is taken each time; what free slots keep is not: that
    // grows until each slot, by chance, was the one of a guest that changes much.
    let (mut warm, mut after) = (round(), round());
    for _ in 0..MOST_GROWTH {
        println!("warm:  {warm:?}\nafter: {after:?}");
        if is_resident_as_before(after, warm) {
            break;
        }
        (warm, after) = (after, round());
    }
    assert!(wrong.is_empty(), "{} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert_each_line_is_the_programs(&server.log(), logged);
    assert_eq!(after.executable_mappings, warm.executable_mappings);
    assert_eq!(after.threads, warm.threads);
    assert_eq!(after.open_files, warm.open_files);
    assert_eq!(after.address_space_gib, warm.address_space_gib);
    assert_eq!(server.metric("evalpool_kernels_beside_total", ""), 0, "each has the kernel in its own module");
    assert!(
        is_resident_as_before(after, warm),
        "{} MiB resident, and {} before",
        after.resident_mib,
        warm.resident_mib
    );
}

/// No more than a tenth more, which allocators may keep one time and not another.
fn is_resident_as_before(after: Held, warm: Held) -> bool {
    after.resident_mib <= warm.resident_mib + warm.resident_mib.div_ceil(10)
}

fn wrong_beside_a_neighbour(
    server: &Server,
    isolation: &str,
    deadlines: Deadlines,
    gallery: &[Hostile],
) -> Vec<String> {
    assert_eq!(server.put(&format!("{NEIGHBOUR}?isolation={isolation}"), GREET).status, 201);
    let (next, wrong, stop) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicBool::new(false));
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| neighbour(server, &stop));
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let (next, wrong) = (&next, &wrong);
                scope.spawn(move || {
                    let name = format!("hostile-{lane}?isolation={isolation}");
                    while let Some(hostile) = gallery.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let outcomes = server.outcomes_of(&name, &hostile.bytes);
                        wrong.lock().unwrap().extend(wrong_with(hostile, deadlines, &outcomes, isolation));
                    }
                })
            })
            .collect();
        let ended: Vec<_> = lanes.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::SeqCst);
        assert!(neighbour.join().expect("the neighbour has no error") > 0);
        for lane in ended {
            lane.expect("each answer is one that can be read");
        }
    });
    assert_eq!(server.delete(NEIGHBOUR).status, 204);
    wrong.into_inner().unwrap()
}

/// Calls again and again until told to stop; how often.
fn neighbour(server: &Server, stop: &AtomicBool) -> usize {
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        let name = format!("{answered}");
        let answer = server.post(NEIGHBOUR, json!({"name": name}).to_string().as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
        let greeting: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(greeting["greeting"], format!("Hello, {name}!"));
        answered += 1;
        // Each call is a connection, of which a machine has so many a minute.
        thread::sleep(Duration::from_millis(5));
    }
    answered
}

/// Gives what was not as it must be: the first outcome is that of the upload if there is no other.
fn wrong_with(hostile: &Hostile, deadlines: Deadlines, outcomes: &[Outcome], isolation: &str) -> Vec<String> {
    let comes = hostile.comes;
    let refused = outcomes.len() == 1;
    let within = if refused { deadlines.of_build(hostile) } else { deadlines.of_call() };
    let mut wrong = Vec::new();
    for outcome in outcomes {
        let Outcome { ended, status, took, text } = outcome;
        let trick = format!("{} ({isolation})", hostile.trick);
        if !as_expected(comes, ended) {
            wrong.push(format!("{trick}: {ended:?} {text:.300}, not {comes:?}"));
        }
        if *status != status_of(ended) {
            wrong.push(format!("{trick}: {status} for {ended:?}"));
        }
        if *took > within {
            wrong.push(format!("{trick}: took {took:?}, more than {within:?}"));
        }
        if ended.is_err() && tells_of_the_host(text) {
            wrong.push(format!("{trick}: tells of the host: {text}"));
        }
    }
    wrong
}

/// What a client is promised. (That each problem has all its parts, the client of these tests checks at each answer.)
fn status_of(ended: &Result<(), String>) -> u16 {
    match ended.as_ref().map_err(String::as_str) {
        Ok(()) => 200,
        Err("exec_timeout") => 504,
        Err(_) => 422,
    }
}

/// A line that a plugin could end, it could also begin: with a time, a level, and whatever it likes.
fn assert_each_line_is_the_programs(log: &str, logged: &str) {
    assert!(log.contains(logged), "plugins' lines are in it");
    for line in log.lines() {
        let is_dated = line.split('T').next().is_some_and(|date| date.len() == 10 && date.starts_with("20"));
        assert!(is_dated && !line.starts_with("2026-01-01T00:00:00"), "{line:?}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

/// What the process holds once every runtime is closed and every thread that waited for more to do has ended.
fn at_rest(server: &Server) -> Held {
    assert_eq!(server.unload("greet").status, 204);
    eventually("every runtime is closed", || server.runtimes() == 0);
    // Threads that block are kept for ten seconds after their last work. One of a guest that runs on, unseen, is not let
    // go: it is one more than there were.
    let (mut threads, mut since) = (0, Instant::now());
    eventually("threads that were kept have ended", || {
        let now = server.threads();
        if now != threads {
            (threads, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(11)
    });
    // Connections that were just served are closed a moment later.
    let mut held = server.held();
    eventually("it holds no more than it did", || {
        let before = std::mem::replace(&mut held, server.held());
        before == held
    });
    held
}
