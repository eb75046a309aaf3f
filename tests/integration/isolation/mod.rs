//! Plugins that leave marks wherever they can, and look for those of others: in slots that are used again and again,
//! beside each other, and after each way to end.

mod callers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use evalpool::{Evaluator, EvaluatorPool, HostFunction, Isolation, Settings, Source, Spec, config::EngineKind};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;

use crate::{
    conformance::{IMPORTS, http::http_server},
    support::{eventually, on_threads, wasm},
};

/// What a look can find: see `seeker.wat`.
const MEMORY: u64 = 1 | 2;
const GLOBALS: u64 = 4;
const TABLES: u64 = 8;
const VARIABLES: u64 = 32;

/// Of what an evaluator left for itself, in an instance that is used again.
const OWN: u64 = MEMORY | GLOBALS | TABLES | VARIABLES;

/// Evaluators that share two places and the slots of two instances.
const EVALUATORS: usize = 12;

fn seeker() -> Vec<u8> {
    wasm(&format!(
        r#"(module
            (import "extism:host/user" "reached" (func $reached))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            {IMPORTS}
            {})"#,
        include_str!("seeker.wat")
    ))
}

/// How often a guest has said that it is there.
#[derive(Clone, Default)]
struct Reached(Arc<AtomicUsize>);

impl Reached {
    fn spec(&self) -> Spec {
        let reached = self.0.clone();
        Spec::new(Source::bytes(seeker())).host_function(HostFunction::new("reached", [], [], move |_, _| {
            reached.fetch_add(1, Ordering::SeqCst);
            Ok(vec![])
        }))
    }
}

fn settings(isolation: Isolation) -> Settings {
    let mut settings = crate::support::settings(EngineKind::Direct);
    settings.engine.isolation = isolation;
    settings.pool.capacity = 2;
    settings.pool.max_instances = 2;
    settings.limits.memory = 8 << 20;
    settings
}

fn pool(isolation: Isolation) -> EvaluatorPool {
    EvaluatorPool::from_settings(&settings(isolation)).unwrap()
}

/// A command with the mark of this number, many times over.
fn input(command: char, number: usize) -> String {
    format!("{command}{}", format!("{number:04}SEEK").repeat(1000))
}

/// What was found of others than this number, or the kind that the call ended with.
async fn ask(evaluator: &Evaluator, command: char, number: usize) -> Result<u64, String> {
    let response = evaluator.evaluate(input(command, number)).await.map_err(|error| error.kind().to_string())?;
    Ok(u64::from_le_bytes(*response.bytes().first_chunk().expect("findings are eight bytes")))
}

/// Callers at once, each of which asks one evaluator after another, at random. `number` is the mark of the evaluation
/// with this count, by the evaluator of this index.
async fn many_ask(pool: EvaluatorPool, looks: char, number: fn(usize, usize) -> usize, allowed: u64) {
    const CALLERS: u64 = 4;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let work = async move {
        let reached = Reached::default();
        let evaluators: Arc<[_]> =
            (0..EVALUATORS).map(|index| pool.evaluator(&format!("e{index}"), reached.spec()).unwrap()).collect();
        let count = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let random = StdRng::seed_from_u64(seed.wrapping_add(caller));
            callers.spawn(ask_at_random(evaluators.clone(), count.clone(), random, looks, number, allowed));
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        pool.close().await;
    };
    // Guests are to run beside each other in truth.
    tokio::task::spawn_blocking(|| on_threads(work)).await.unwrap();
}

async fn ask_at_random(
    evaluators: Arc<[Evaluator]>,
    count: Arc<AtomicUsize>,
    mut random: StdRng,
    looks: char,
    number: fn(usize, usize) -> usize,
    allowed: u64,
) {
    for _ in 0..75 {
        let index = random.random_range(0..EVALUATORS);
        let number = number(count.fetch_add(1, Ordering::SeqCst), index);
        let (command, ending) = match random.random_range(0..10) {
            0 => ('t', Err("guest_trap")),
            1 => ('e', Err("guest_error")),
            2 => ('x', Err("guest_exit")),
            _ => (looks, Ok(())),
        };
        let came = ask(&evaluators[index], command, number).await;
        assert_eq!(came.as_ref().map(|_| ()).map_err(String::as_str), ending, "{command}");
        if let Ok(found) = came {
            assert_eq!(found & !allowed, 0, "evaluator {index} found {found:#b}");
        }
    }
}

#[tokio::test]
async fn in_fresh_no_evaluation_finds_anything_of_another() {
    // Each evaluation has a mark of its own, so that those of its own evaluator are found as well.
    many_ask(pool(Isolation::Fresh), 'n', |count, _| count + 1, 0).await;
}

#[tokio::test]
async fn in_reuse_no_evaluator_finds_anything_of_another() {
    // That its memory and tables have grown, an instance may find: it was its evaluator's before.
    many_ask(pool(Isolation::Reuse), 'o', |_, index| index + 1, 1 | TABLES).await;
}

#[tokio::test]
async fn what_an_instance_leaves_in_reuse_its_own_evaluator_finds_and_nothing_of_a_call() {
    let pool = pool(Isolation::Reuse);
    let evaluator = pool.evaluator("one", Reached::default().spec()).unwrap();
    assert_eq!(ask(&evaluator, 'n', 1).await, Ok(0));
    // The input, output, error and blocks of a call are gone with it, in either isolation.
    assert_eq!(ask(&evaluator, 'l', 2).await, Ok(OWN));
    // A code is an answer like another: the instance stays.
    assert_eq!(ask(&evaluator, 'e', 3).await, Err("guest_error".to_owned()));
    assert_eq!(ask(&evaluator, 'l', 4).await, Ok(OWN));
    let other = pool.evaluator("other", Reached::default().spec()).unwrap();
    assert_eq!(ask(&other, 'n', 5).await, Ok(0));
    pool.close().await;
}

#[tokio::test]
async fn in_reuse_nothing_is_left_of_an_instance_that_did_not_end_well() {
    let pool = pool(Isolation::Reuse);
    let reached = Reached::default();
    let evaluator = pool.evaluator("one", reached.spec().exec_timeout(Duration::from_mins(1))).unwrap();
    for (command, ending) in [('t', "guest_trap"), ('x', "guest_exit")] {
        assert_eq!(ask(&evaluator, command, 1).await, Err(ending.to_owned()));
        assert_eq!(ask(&evaluator, 'n', 2).await, Ok(0), "after {ending}");
    }
    // The caller leaves while the guest is running.
    let left = tokio::spawn({
        let evaluator = evaluator.clone();
        async move { ask(&evaluator, 's', 3).await }
    });
    eventually("the guest runs", || reached.0.load(Ordering::SeqCst) == 1).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    assert_eq!(ask(&evaluator, 'n', 4).await, Ok(0), "after a cancel");
    // Long enough for its marks to be there when its time is up.
    let hasty = pool.evaluator("hasty", reached.spec().exec_timeout(Duration::from_secs(1))).unwrap();
    assert_eq!(ask(&hasty, 's', 5).await, Err("exec_timeout".to_owned()));
    assert_eq!(reached.0.load(Ordering::SeqCst), 2);
    assert_eq!(ask(&hasty, 'n', 6).await, Ok(0), "after a timeout");
    pool.close().await;
}

#[tokio::test]
async fn in_reuse_nothing_is_left_once_an_instance_has_served_its_uses() {
    let mut settings = settings(Isolation::Reuse);
    settings.pool.max_uses = 2;
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let evaluator = pool.evaluator("one", Reached::default().spec()).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&evaluator, 'n', 1).await, Ok(0));
        assert_eq!(ask(&evaluator, 'l', 2).await, Ok(OWN));
    }
    pool.close().await;
}

#[tokio::test]
async fn in_reuse_a_plugin_that_was_replaced_or_evicted_leaves_nothing() {
    let pool = pool(Isolation::Reuse);
    let reached = Reached::default();
    for round in 0..3 {
        let evaluator = pool.register("one", reached.spec()).unwrap();
        assert_eq!(ask(&evaluator, 'n', 1).await, Ok(0), "{round}");
        assert_eq!(ask(&evaluator, 'l', 2).await, Ok(OWN), "{round}");
    }
    let evaluator = pool.get("one").unwrap();
    evaluator.unload().await;
    assert_eq!(ask(&evaluator, 'n', 3).await, Ok(0));
    pool.close().await;
}

#[tokio::test]
async fn each_evaluator_has_its_own_settings_and_answers() {
    let port = http_server(|_| "HTTP/1.1 204 No Content\r\nx-whose: one\r\nconnection: close\r\n\r\n".to_owned());
    let pool = pool(Isolation::Fresh);
    let reached = Reached::default();
    let [one, other] = ["one", "other"].map(|name| {
        let spec = reached.spec().config("shape", name).allowed_hosts(["127.0.0.1"]);
        pool.evaluator(name, spec).unwrap()
    });
    for _ in 0..5 {
        for evaluator in [&one, &other] {
            assert_eq!(evaluator.evaluate("c").await.unwrap().bytes(), evaluator.name());
            let request = format!(r#"{{"url":"http://127.0.0.1:{port}/"}}"#);
            evaluator.evaluate(request).await.unwrap();
            for asked in [&one, &other] {
                assert_eq!(ask(asked, 'n', 1).await, Ok(0));
            }
        }
    }
    pool.close().await;
}
