//! Compile workers: what is too much to compile is ended, for that plugin alone, and the same bytes are compiled once.

mod bombs;
mod processes;
mod turns;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use evalpool::{
    Error, Evaluator, EvaluatorPool, PoolBuilder, RuntimeState, Settings, Source, Spec,
    config::{CodeCache, CompileWorkers, EngineKind},
    engine::{CompileWorkerCounts, CompiledPlugin, Ended, direct::Compiled},
};
use tempfile::TempDir;

use crate::support::{self, GREET, eventually, settings, wasm};

fn pool(set: impl FnOnce(&mut Settings)) -> EvaluatorPool {
    let mut settings = settings(EngineKind::Direct);
    set(&mut settings);
    PoolBuilder::from(settings).build().unwrap()
}

fn counts(pool: &EvaluatorPool) -> CompileWorkerCounts {
    pool.compile_workers().expect("it compiles in workers")
}

fn ended(pool: &EvaluatorPool, how: Ended) -> u64 {
    counts(pool).ended[how as usize]
}

fn bytes(bytes: Vec<u8>) -> Spec {
    Spec::new(Source::bytes(bytes))
}

fn small() -> Spec {
    bytes(wasm(r#"(module (func (export "run")))"#))
}

async fn fails(pool: &EvaluatorPool, name: &str, spec: Spec) -> Error {
    pool.evaluator(name, spec).unwrap().evaluate("").await.expect_err(name)
}

async fn runs(pool: &EvaluatorPool, name: &str, spec: Spec) {
    pool.evaluator(name, spec).unwrap().evaluate("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_four_bombs_on_two_slots_another_plugin_is_compiled() {
    let short = Duration::from_secs(1);
    let pool = pool(|settings| settings.pool.build_concurrency = 2);
    let mut falling = tokio::task::JoinSet::new();
    for (name, bomb) in bombs::all() {
        let bomb = pool.evaluator(name, bytes(bomb).build_timeout(short)).unwrap();
        falling.spawn(async move { bomb.evaluate("").await });
    }
    eventually("both slots are taken", || counts(&pool).busy == 2).await;
    let greet = pool.evaluator("greet", Spec::new(Source::bytes(GREET))).unwrap();
    greet.evaluate(r#"{"name":"Ada"}"#).await.unwrap();
    while let Some(ended) = falling.join_next().await {
        // A machine that is fast enough for one of them has compiled it; one that is busy has not even looked at it.
        if let Err(error) = ended.unwrap() {
            let kinds = ["build_timeout", "invalid_plugin", "source_unavailable"];
            assert!(kinds.contains(&error.kind().as_str()), "{}", error.chain());
        }
    }
    eventually("no slot is held", || counts(&pool).busy == 0).await;
    assert!(counts(&pool).idle <= 2);
    runs(&pool, "after", small()).await;
}

#[tokio::test]
async fn a_plugin_that_takes_too_much_memory_to_compile_is_told_so_and_not_compiled_again_soon() {
    let pool = pool(|settings| settings.limits.compile_memory = 64 << 20);
    let spec = bytes(bombs::many_functions());
    let error = fails(&pool, "first", spec.clone()).await;
    assert_eq!(error.kind(), "invalid_plugin");
    assert!(error.to_string().contains("needs more than limits.compile_memory, 64 MiB, to compile"), "{error}");
    assert_eq!((error.retry_after(), ended(&pool, Ended::Memory)), (None, 1));
    let again = fails(&pool, "second", spec).await;
    assert_eq!(again.to_string(), error.to_string());
    assert!(again.retry_after().is_some());
    assert_eq!(ended(&pool, Ended::Memory), 1, "no worker was asked");
    runs(&pool, "another", small()).await;
}

#[tokio::test]
async fn a_plugin_that_takes_too_long_to_compile_is_not_compiled_again_soon_but_with_more_time() {
    let pool = pool(|settings| settings.limits.build_timeout = Duration::from_millis(300));
    let spec = bytes(bombs::nested_loops());
    let mut compiled = 0;
    let after = loop {
        let error = fails(&pool, &format!("{compiled}"), spec.clone()).await;
        assert_eq!(error.kind(), "build_timeout");
        // A worker that had hardly any of the processors says nothing of the plugin: a busy machine takes more than one.
        match error.retry_after() {
            Some(after) => break after,
            None => compiled += 1,
        }
        eventually("its worker is gone", || ended(&pool, Ended::Timeout) == compiled).await;
        assert!(compiled < 100, "it is compiled again and again");
    };
    assert!(compiled > 0 && after > Duration::from_secs(30), "{compiled}, {after:?}");
    let longer = fails(&pool, "longer", spec.build_timeout(Duration::from_millis(400))).await;
    assert_eq!((longer.kind().as_str(), longer.retry_after()), ("build_timeout", None));
    eventually("its worker is gone too", || ended(&pool, Ended::Timeout) == compiled + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_nobody_waits_for_gives_way_to_one_that_is_wanted() {
    let pool = pool(|settings| settings.pool.build_concurrency = 1);
    let calls = |bomb: &Evaluator| {
        let bomb = bomb.clone();
        tokio::spawn(async move { bomb.evaluate("").await.map(drop) })
    };
    // Kept: without handles, an evaluator closes, and its compile ends at once.
    let bomb = pool.evaluator("bomb", bytes(bombs::nested_loops())).unwrap();
    let caller = calls(&bomb);
    eventually("it is being compiled", || counts(&pool).busy == 1).await;
    // Both orders: somebody wants the slot when the caller leaves, and the caller has left when somebody wants it.
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { runs(&pool, "first", small()).await }
    });
    eventually("both have a place", || pool.runtimes() == 2).await;
    caller.abort();
    waiting.await.unwrap();
    eventually("its worker is gone", || ended(&pool, Ended::Killed) == 1).await;

    let bomb = pool.evaluator("bomb", bytes(bombs::long_function())).unwrap();
    let caller = calls(&bomb);
    eventually("it is being compiled", || counts(&pool).busy == 1).await;
    caller.abort();
    let _ = caller.await;
    runs(&pool, "second", bytes(wasm(r#"(module (func (export "run") nop))"#))).await;
    eventually("its worker is gone too", || ended(&pool, Ended::Killed) == 2).await;
    eventually("their places are given back", || pool.runtimes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_in_the_middle_of_a_compile_ends_its_worker_at_once() {
    let pool = pool(|settings| settings.limits.build_timeout = Duration::from_mins(10));
    let bomb = pool.evaluator("bomb", bytes(bombs::nested_loops())).unwrap();
    let caller = tokio::spawn({
        let bomb = bomb.clone();
        async move { bomb.evaluate("").await.map(drop) }
    });
    eventually("it is being compiled", || counts(&pool).busy == 1).await;
    bomb.close().await;
    assert_eq!((counts(&pool).busy, ended(&pool, Ended::Killed), pool.runtimes()), (0, 1, 0));
    assert_eq!(caller.await.unwrap().unwrap_err().kind(), "closed");
}

#[tokio::test]
async fn a_plugin_is_refused_in_the_same_words_wherever_it_is_compiled() {
    let with = |workers: Option<CompileWorkers>| {
        pool(|settings| {
            settings.limits.table_elements = 10;
            settings.engine.compile_workers = workers.unwrap_or(settings.engine.compile_workers.clone());
        })
    };
    let (in_workers, in_process) = (with(None), with(Some(CompileWorkers::Off)));
    for text in [
        // More than the engine's slots hold, which a worker does not know of.
        r#"(module (table 11 funcref) (func (export "run")))"#,
        r#"(module (table 1 funcref) (table 1 funcref) (table 1 funcref) (table 1 funcref) (table 1 funcref)
            (func (export "run")))"#,
        // Of no type.
        r#"(module (func (export "run") (i32.add)))"#,
    ] {
        let [from_worker, here] = [
            fails(&in_workers, "in-a-worker", bytes(wasm(text))).await,
            fails(&in_process, "in-process", bytes(wasm(text))).await,
        ];
        assert_eq!(from_worker.kind(), "invalid_plugin", "{}", from_worker.chain());
        assert_eq!(from_worker.to_string(), here.to_string());
    }
}

#[tokio::test]
async fn a_plugin_that_is_too_large_for_a_worker_to_read_is_told_so() {
    let pool = pool(|settings| {
        settings.limits.compile_memory = 64 << 20;
        settings.limits.plugin_size = 128 << 20;
    });
    let mut large = wasm(r#"(module (func (export "run")))"#);
    // A custom section of 80 MiB: its size in LEB128, and an empty name.
    large.extend([0, 0x80, 0x80, 0x80, 0x28, 0]);
    large.resize(large.len() + (80 << 20) - 1, 0);
    let error = fails(&pool, "large", bytes(large)).await;
    assert!(error.to_string().contains("limits.compile_memory"), "{}", error.chain());
    runs(&pool, "after", small()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_nobody_waits_for_ends_well_if_nobody_wants_its_slot() {
    let pool = pool(|settings| settings.pool.build_concurrency = 1);
    // So large that it is caught in its compile, and not so large that its worker is replaced afterwards.
    let slow = pool.evaluator("slow", bytes(bombs::honest(8_000))).unwrap();
    let caller = tokio::spawn({
        let slow = slow.clone();
        async move { slow.evaluate("").await.map(drop) }
    });
    eventually("it is being compiled", || counts(&pool).busy == 1).await;
    caller.abort();
    let _ = caller.await;
    let live = |runtimes: &[evalpool::RuntimeInfo]| runtimes.iter().any(|runtime| runtime.state == RuntimeState::Live);
    eventually("it is live", || live(&pool.snapshot().runtimes)).await;
    let counted = counts(&pool);
    assert_eq!((counted.idle, counted.busy, counted.ended), (1, 0, [0; Ended::ALL.len()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_are_compiled_once_and_share_their_code() {
    let pool = pool(|settings| {
        settings.engine.code_cache = CodeCache::Off;
        settings.pool.build_concurrency = 4;
    });
    let wasm = bombs::honest(5_000);
    let evaluators: Vec<_> =
        (0..4).map(|at| pool.evaluator(&format!("same-{at}"), bytes(wasm.clone())).unwrap()).collect();
    let mut calls = tokio::task::JoinSet::new();
    for evaluator in evaluators.clone() {
        calls.spawn(async move { evaluator.evaluate("").await.map(drop) });
    }
    while let Some(called) = calls.join_next().await {
        called.unwrap().unwrap();
    }
    let CompileWorkerCounts { idle, busy, .. } = counts(&pool);
    assert_eq!((idle, busy), (1, 0), "one worker has compiled, and no other was ever needed");
    let mut images = Vec::new();
    for evaluator in &evaluators {
        let executable = evaluator.executable().await.unwrap();
        let image = |plugin: &dyn CompiledPlugin| {
            plugin.as_any().downcast_ref::<Compiled>().unwrap().module().unwrap().image_range()
        };
        images.push(executable.with_compiled(image).await.unwrap());
    }
    images.dedup();
    assert_eq!(images.len(), 1, "one image of the code serves all");
    pool.close().await;
}

#[tokio::test]
async fn what_wants_more_than_a_slot_has_is_refused_in_the_same_words_wherever_it_was_compiled() {
    let mut refusals = Vec::new();
    for workers in [support::compile_workers(), CompileWorkers::Off] {
        let pool = pool(|settings| settings.engine.compile_workers = workers);
        let tables = bytes(wasm(&format!(r#"(module {} (func (export "run")))"#, "(table 1 funcref) ".repeat(5))));
        let error = fails(&pool, "tables", tables).await;
        assert_eq!(error.kind(), "invalid_plugin", "{}", error.chain());
        refusals.push(error.to_string());
    }
    assert!(refusals[0].contains("tables"), "{refusals:?}");
    assert_eq!(refusals[0], refusals[1]);
}

#[tokio::test]
async fn a_program_that_is_no_worker_of_this_build_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let script = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    for (program, says) in [
        (PathBuf::from("/nonexistent/program"), "/nonexistent/program cannot be started"),
        ("/bin/true".into(), "/bin/true does not answer as a compile worker"),
        (script("echo", "cat"), "it does not speak as one"),
        (
            script("other", r#"echo '{"ready":{"release":"0.0.1 0","reservation":1,"guard":1}}'; cat > /dev/null"#),
            "it is of another build",
        ),
    ] {
        let pool = pool(|settings| settings.engine.compile_workers = CompileWorkers::Program(program.clone()));
        let error = fails(&pool, "greet", Spec::new(Source::bytes(GREET))).await;
        assert_eq!(error.kind(), "internal", "{program:?}");
        assert!(error.chain().contains(says), "{}", error.chain());
        assert_eq!((counts(&pool).busy, counts(&pool).idle), (0, 0), "{program:?}");
    }
}

#[tokio::test]
async fn without_workers_plugins_are_compiled_in_this_process() {
    let pool = pool(|settings| settings.engine.compile_workers = CompileWorkers::Off);
    assert_eq!(pool.compile_workers(), None);
    let greet = pool.evaluator("greet", Spec::new(Source::bytes(GREET))).unwrap();
    greet.evaluate(r#"{"name":"Ada"}"#).await.unwrap();
    let error = fails(&pool, "invalid", bytes(b"\0asm\x01\0\0\0\x01".to_vec())).await;
    assert_eq!(error.kind(), "invalid_plugin");
}
