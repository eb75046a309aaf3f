//! `Source::from_fn`: a closure is asked for the bytes at each build, within the bounds of every fetch.

use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use evalpool::{Digest, Source, Spec};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::{evaluate, module};
use crate::support::{eventually, spy::Spy, wasm};

fn gives(bytes: impl Into<Bytes>) -> Source {
    let bytes = bytes.into();
    Source::from_fn(move || {
        let bytes = bytes.clone();
        async move { Ok::<_, io::Error>(bytes) }
    })
}

#[tokio::test]
async fn a_loader_gives_the_plugin_and_is_held_to_the_size_limit_and_the_digest() {
    evaluate(Spec::new(gives(module())).digest(Digest::of(&module()))).await.unwrap();
    let longer = [module(), vec![0]].concat();
    for (spec, kind) in [
        (Spec::new(gives(longer)), "payload_too_large"),
        (Spec::new(gives(module())).digest(Digest::of(b"other")), "digest_mismatch"),
        (Spec::new(gives(r#"{"wasm":[{"path":"/etc/passwd"}]}"#)), "invalid_plugin"),
        (Spec::new(gives("(module)")), "invalid_plugin"),
        (Spec::new(gives("")), "invalid_plugin"),
    ] {
        assert_eq!(evaluate(spec).await.unwrap_err().kind(), kind);
    }
}

#[tokio::test]
async fn a_loaders_error_is_the_cause_and_is_not_told_to_clients() {
    let fails = || async { Err::<Bytes, _>(io::Error::other("s3://bucket/key: access denied")) };
    let error = evaluate(Spec::new(Source::from_fn(fails))).await.unwrap_err();
    assert_eq!(error.kind(), "source_unavailable");
    assert!(!error.to_string().contains("s3://"), "{error}");
    assert!(error.chain().ends_with("s3://bucket/key: access denied"), "{}", error.chain());
}

#[tokio::test]
async fn a_loader_that_panics_fails_its_build_and_no_other() {
    let at_once = Source::from_fn(|| -> std::future::Ready<io::Result<Bytes>> { panic!("told to") });
    let later = Source::from_fn(|| async {
        tokio::task::yield_now().await;
        if module().is_empty() { Ok::<_, io::Error>(Bytes::new()) } else { panic!("told to") }
    });
    for source in [at_once, later] {
        let error = evaluate(Spec::new(source)).await.unwrap_err();
        assert_eq!(error.kind(), "internal");
        assert_eq!(error.chain(), "internal error: a source's loader panicked: told to");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loader_is_called_at_each_build_and_by_one_for_all_who_wait() {
    let (spy, calls) = (Spy::default(), Arc::new(AtomicUsize::new(0)));
    let pool = spy.pool(|builder| builder.capacity(1));
    let counted = calls.clone();
    let source = Source::from_fn(move || {
        // The first fetch fails, which is not remembered.
        let call = counted.fetch_add(1, Ordering::SeqCst);
        async move { if call == 0 { Err("not yet") } else { Ok(module()) } }
    });
    let loaded = pool.evaluator("loaded", Spec::new(source)).unwrap();
    assert_eq!(loaded.evaluate("").await.unwrap_err().kind(), "source_unavailable");
    loaded.evaluate("").await.unwrap();
    loaded.evaluate("").await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);

    let other = pool.evaluator("other", Spy::spec()).unwrap();
    other.evaluate("").await.unwrap();
    let (one, two) = tokio::join!(loaded.evaluate(""), loaded.evaluate(""));
    one.and(two).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    pool.close().await;
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn what_a_loader_gives_later_is_the_plugin_then() {
    let (spy, calls) = (Spy::default(), Arc::new(AtomicUsize::new(0)));
    let pool = spy.pool(|builder| builder.capacity(1));
    let plugins = [module(), wasm(r#"(module (func (export "run") nop))"#)];
    let digests = plugins.clone().map(|plugin| Digest::of(&plugin));
    let source = Source::from_fn(move || {
        let plugin = plugins[calls.fetch_add(1, Ordering::SeqCst) % 2].clone();
        async move { Ok::<_, io::Error>(plugin) }
    });
    let any = pool.evaluator("any", Spec::new(source.clone())).unwrap();
    for _ in 0..2 {
        any.evaluate("").await.unwrap();
        any.unload().await;
    }
    // The third and the fourth time.
    let one = pool.evaluator("one", Spec::new(source).digest(digests[0])).unwrap();
    one.evaluate("").await.unwrap();
    one.unload().await;
    assert_eq!(one.evaluate("").await.unwrap_err().kind(), "digest_mismatch");
}

/// Tells when it is dropped.
struct Tells(mpsc::UnboundedSender<()>);

impl Drop for Tells {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// A source that never answers, whether it was begun, and whether its future was dropped.
fn hangs() -> (Source, Arc<Notify>, mpsc::UnboundedReceiver<()>) {
    let (tell, told) = mpsc::unbounded_channel();
    let begun = Arc::new(Notify::new());
    let begins = begun.clone();
    let source = Source::from_fn(move || {
        let (tells, begins) = (Tells(tell.clone()), begins.clone());
        async move {
            let _tells = tells;
            begins.notify_one();
            pending::<io::Result<Bytes>>().await
        }
    });
    (source, begun, told)
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_never_answers_is_dropped_at_the_build_timeout() {
    let (source, _, mut dropped) = hangs();
    let spec = Spec::new(source).build_timeout(Duration::from_secs(7));
    let began = tokio::time::Instant::now();
    let error = evaluate(spec).await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 7);
    assert_eq!(error.kind(), "source_unavailable");
    assert!(error.chain().ends_with("it was not read within 7 s"), "{}", error.chain());
    dropped.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_loader_is_dropped_when_its_evaluator_is_closed_or_replaced_or_its_pool_is_closed() {
    for (how, kind) in [("close", Some("closed")), ("replace", None), ("shut down", Some("shutting_down"))] {
        let (spy, (source, begun, mut dropped)) = (Spy::default(), hangs());
        let pool = spy.pool(|builder| builder.capacity(1));
        let evaluator = pool.register("loaded", Spec::new(source)).unwrap();
        let called = evaluator.clone();
        let evaluating = tokio::spawn(async move { called.evaluate("").await });
        begun.notified().await;
        let now = tokio::time::Instant::now();
        match how {
            "close" => drop(evaluator.close().await),
            "replace" => drop(pool.register("loaded", Spy::spec()).unwrap()),
            _ => drop(pool.close().await),
        }
        dropped.recv().await.unwrap();
        assert_eq!(now.elapsed(), Duration::ZERO, "{how}");
        // What is replaced passes its callers on.
        let ended = evaluating.await.unwrap().err().map(|error| error.kind().to_string());
        assert_eq!(ended.as_deref(), kind, "{how}");
        pool.close().await;
        spy.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_loader_whose_callers_have_left_goes_on_until_its_build_ends() {
    let (spy, release) = (Spy::default(), Arc::new(Notify::new()));
    let pool = spy.pool(|builder| builder.capacity(1));
    let (begun, calls) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let source = Source::from_fn({
        let (release, begun, calls) = (release.clone(), begun.clone(), calls.clone());
        move || {
            let (release, begun) = (release.clone(), begun.clone());
            calls.fetch_add(1, Ordering::SeqCst);
            async move {
                begun.notify_one();
                release.notified().await;
                Ok::<_, io::Error>(module())
            }
        }
    });
    let evaluator = pool.evaluator("loaded", Spec::new(source)).unwrap();
    let evaluate = || {
        let evaluator = evaluator.clone();
        tokio::spawn(async move { evaluator.evaluate("").await })
    };
    let caller = evaluate();
    begun.notified().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    // Whoever comes next joins the fetch.
    let next = evaluate();
    tokio::task::yield_now().await;
    release.notify_one();
    next.await.unwrap().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    pool.close().await;
    spy.assert_nothing_left();
}

#[test]
fn a_loader_ends_with_the_runtime_that_builds() {
    let (source, begun, mut dropped) = hangs();
    let spy = Spy::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let pool = {
        let _within = runtime.enter();
        spy.pool(|builder| builder.capacity(1))
    };
    let evaluator = pool.evaluator("loaded", Spec::new(source)).unwrap();
    let evaluating = evaluator.clone();
    runtime.spawn(async move { evaluating.evaluate("").await });
    runtime.block_on(begun.notified());
    assert!(dropped.try_recv().is_err());
    runtime.shutdown_background();
    dropped.blocking_recv().unwrap();
    drop((evaluator, pool));
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn loaders_that_fetch_at_once_are_bounded_by_the_bytes_that_they_may_bring() {
    let spy = Spy::default();
    // Of 128 MiB in all, 32 MiB each.
    let pool = spy.pool(|builder| builder.capacity(8));
    let (loading, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let source = Source::from_fn({
        let (loading, gate) = (loading.clone(), gate.clone());
        move || {
            let (loading, gate) = (loading.clone(), gate.clone());
            async move {
                loading.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.map(|_| module())
            }
        }
    });
    let evaluations: Vec<_> = (0..6)
        .map(|number| {
            let evaluator = pool.evaluator(&format!("e{number}"), Spec::new(source.clone())).unwrap();
            tokio::spawn(async move { evaluator.evaluate("").await })
        })
        .collect();
    eventually("four load", || loading.load(Ordering::SeqCst) == 4).await;
    // A plugin in memory does not wait for them. Once it has run, the others would have begun as well.
    pool.evaluator("in-memory", Spy::spec()).unwrap().evaluate("").await.unwrap();
    assert_eq!(loading.load(Ordering::SeqCst), 4);
    gate.add_permits(1);
    for evaluation in evaluations {
        evaluation.await.unwrap().unwrap();
    }
    pool.close().await;
    spy.assert_nothing_left();
}
