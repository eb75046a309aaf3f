//! Host functions: one that blocks a close, what one captured, the context of a call, JSON, an error that is set.

mod context;
mod json;
mod set_error;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use evalpool::{CloseReport, HostFunction, Source, Spec, config::EngineKind};
use tokio::time::timeout;

use crate::{
    conformance::IMPORTS,
    support::{CALL_HOST, ENGINES, GREET, builder, eventually, on_threads},
};

/// Imports of a module's own, and everything that Extism provides.
fn imports(own: &str) -> String {
    format!("{own} {IMPORTS}")
}

#[test]
fn corner_15_a_host_function_that_blocks_is_reported_by_close_and_its_place_stays_counted() {
    for engine in ENGINES {
        on_threads(a_host_function_that_blocks_keeps_its_place(engine));
    }
}

async fn a_host_function_that_blocks_keeps_its_place(engine: EngineKind) {
    let (unblock, blocked) = mpsc::channel::<()>();
    let (began, begins) = mpsc::channel();
    let blocked = Mutex::new(blocked);
    let function = HostFunction::bytes("host_upper", move |input| {
        let _ = began.send(());
        let _ = blocked.lock().unwrap().recv();
        Ok(input.to_vec())
    });
    let pool = builder(engine).capacity(2).build().unwrap();
    let spec = Spec::new(Source::bytes(CALL_HOST))
        .entry_point("call_host")
        .host_function(function)
        .exec_timeout(Duration::from_mins(10));
    let evaluator = pool.evaluator("blocks", spec).unwrap();
    let running = tokio::spawn({
        let evaluator = evaluator.clone();
        async move { evaluator.evaluate("x").await }
    });
    tokio::task::spawn_blocking(move || begins.recv()).await.unwrap().unwrap();
    let report = evaluator.close_with(Duration::from_millis(10)).await;
    assert_eq!(report, CloseReport::Unfinished { remaining: 1 });
    assert_eq!(pool.runtimes(), 1);
    // On extism the guest has a thread of its own, and its caller is told at once. On direct the function blocks the
    // thread that polls the caller, who learns of the close once it returns.
    let mut unblock = Some(unblock);
    if engine == EngineKind::Direct {
        unblock = None;
    }
    match running.await.unwrap() {
        // The function returned, and the guest with it, before anybody could interrupt it.
        Ok(_) => assert_eq!(engine, EngineKind::Direct),
        Err(error) => assert_eq!(error.kind(), "closed"),
    }
    drop(unblock);
    eventually("the place comes back when the function returns", || pool.runtimes() == 0).await;
}

#[test]
fn what_a_host_function_captured_is_dropped_when_its_evaluator_is_closed_on_every_path_of_each_engine() {
    ENGINES.into_iter().for_each(what_a_host_function_captured_is_dropped);
}

fn what_a_host_function_captured_is_dropped(engine: EngineKind) {
    on_threads(async {
        let alive = Arc::new(AtomicUsize::new(0));
        let captured = || {
            alive.fetch_add(1, Ordering::SeqCst);
            Captured { _alive: Arc::new(AliveCount(alive.clone())) }
        };
        let spec = |entry_point: &str| {
            let captured = captured();
            let function = HostFunction::bytes("host_upper", move |input| {
                let _kept = &captured;
                match input {
                    b"panic" => panic!("told to"),
                    b"fail" => Err(evalpool::HostFunctionError::new("told to")),
                    input => Ok(input.to_ascii_uppercase()),
                }
            });
            Spec::new(Source::bytes(CALL_HOST)).entry_point(entry_point).host_function(function)
        };
        let all_dropped = || alive.load(Ordering::SeqCst) == 0;
        let pool = builder(engine).capacity(2).build().unwrap();

        for input in ["x", "panic", "fail"] {
            let evaluator = pool.evaluator("closed", spec("call_host")).unwrap();
            let _ = evaluator.evaluate(input).await;
            evaluator.close().await;
            eventually("close drops it", all_dropped).await;
        }
        let evaluator = pool.evaluator("dropped", spec("call_host")).unwrap();
        evaluator.evaluate("x").await.unwrap();
        drop(evaluator);
        eventually("dropping the last handle drops it", all_dropped).await;

        pool.evaluator("refused", spec("no_such")).unwrap().evaluate("x").await.unwrap_err();
        eventually("a failed build drops it", all_dropped).await;

        drop(pool.prepare("unpublished", spec("call_host")).await.unwrap());
        eventually("not publishing drops it", all_dropped).await;

        pool.prepare("name", spec("call_host")).await.unwrap().publish();
        pool.prepare("name", Spec::new(Source::bytes(GREET))).await.unwrap().publish();
        eventually("replacing drops it", all_dropped).await;

        let cancelled = pool.evaluator("cancelled", spec("call_host")).unwrap();
        let _ = timeout(Duration::from_micros(200), cancelled.evaluate("x")).await;
        drop(cancelled);
        eventually("a dropped call drops it", all_dropped).await;

        pool.register("kept", spec("call_host")).unwrap().evaluate("x").await.unwrap();
        pool.close().await;
        drop(pool);
        eventually("dropping the pool drops it", all_dropped).await;
    });
}

/// Counts how many of its clones are alive.
#[derive(Clone)]
struct Captured {
    _alive: Arc<AliveCount>,
}

struct AliveCount(Arc<AtomicUsize>);

impl Drop for AliveCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
