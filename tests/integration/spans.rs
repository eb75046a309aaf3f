//! What the pool tells of an evaluation, a build and a close in spans, and that it is all told of those that ended badly too.

use std::time::Duration;

use evalpool::{Digest, HostFunction, Isolation, Source, Spec, TraceParent, config::EngineKind, engine::ValType};
use tokio::time::timeout;

use super::support::{
    builder, eventually,
    spans::Spans,
    spy::{Act, Spy},
    wasm,
};

#[tokio::test(start_paused = true)]
async fn a_cold_evaluation_is_told_with_the_build_that_it_waits_for_and_a_warm_one_without() {
    let spans = Spans::here();
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1).isolation(Isolation::Reuse));
    let evaluator = pool.register("acme/price", Spy::spec()).unwrap();
    evaluator.entry_point("run").evaluate("four").await.unwrap();
    let expected = [
        ("evaluation", ""),
        ("wait", "evaluation"),
        ("build", "wait"),
        ("fetch", "build"),
        ("compile", "build"),
        ("probe", "build"),
        ("instantiate", "evaluation"),
        ("run", "evaluation"),
    ];
    assert_eq!(spans.names(), expected, "what is in memory is fetched as well, at once");
    assert!(spans.all().iter().all(|seen| seen.has_ended), "{:#?}", spans.all());

    let (digest, revision) = (pool.info("acme/price").unwrap().digest.unwrap(), pool.snapshot().runtimes[0].revision);
    let told = spans.last("evaluation");
    for (name, value) in [
        ("otel.name", "acme/price"),
        ("faas.name", "acme/price"),
        ("faas.version", &*revision.to_string()),
        ("faas.coldstart", "false"),
        ("code.function.name", "run"),
        ("evalpool.tenant", "acme"),
        ("evalpool.outcome", "ok"),
        ("error.type", ""),
        ("otel.status_code", ""),
        ("evalpool.usage.bytes_in", "4"),
        ("evalpool.usage.bytes_out", "6"),
        ("evalpool.usage.host_calls", "0"),
    ] {
        // Time is paused: the build took none.
        assert_eq!(told.field(name), value, "{name}");
    }
    let built = spans.last("build");
    assert_eq!((built.field("evalpool.plugin.digest"), built.field("evalpool.outcome")), (&*digest.to_string(), "ok"));
    assert_eq!((built.field("faas.name"), built.field("evalpool.tenant")), ("acme/price", "acme"));
    spans.forget();
    evaluator.evaluate("").await.unwrap();
    evaluator.evaluate("").await.unwrap();
    let last = [("evaluation", ""), ("run", "evaluation")];
    assert_eq!(
        spans.names()[spans.names().len() - 2..],
        last,
        "an instance that its thread has kept is not waited for"
    );
}

#[tokio::test(start_paused = true)]
async fn what_fails_or_is_left_says_why() {
    let spans = Spans::here();
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let evaluator = pool.register("one", Spy::spec()).unwrap();
    let told = |name| {
        let seen = spans.last(name);
        assert!(seen.has_ended);
        ["evalpool.outcome", "error.type", "otel.status_code"].map(|field| seen.field(field).to_owned())
    };
    spy.on_compile([Act::Fail]);
    evaluator.evaluate("").await.unwrap_err();
    assert_eq!(told("build"), ["invalid_plugin", "invalid_plugin", "ERROR"]);
    assert_eq!(told("evaluation"), ["invalid_plugin", "invalid_plugin", "ERROR"]);
    let other = pool.register("other", Spy::spec()).unwrap();
    spy.on_call([Act::Fail, Act::Never]);
    other.evaluate("").await.unwrap_err();
    assert_eq!(told("evaluation"), ["guest_trap", "guest_trap", "ERROR"]);
    timeout(Duration::from_millis(10), other.evaluate("")).await.unwrap_err();
    assert_eq!(told("evaluation"), ["cancelled", "cancelled", "ERROR"]);
}

#[tokio::test(start_paused = true)]
async fn an_eviction_and_a_close_are_spans_of_their_own_until_all_is_gone() {
    let spans = Spans::here();
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let [first, second] = ["a/first", "b/second"].map(|name| pool.register(name, Spy::spec()).unwrap());
    first.evaluate("").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    spy.keeps_permits(1);
    let newcomer = tokio::spawn(async move { second.evaluate("").await.map(drop) });
    eventually("the first is closing", || spans.names().iter().any(|(name, _)| *name == "close")).await;
    eventually("its plugin is dropped", || spy.closes() == 1).await;
    let evicted = spans.last("close");
    assert!(!evicted.has_ended, "its permit is still held");
    assert_eq!((evicted.parent, evicted.causes.len()), ("", 1), "its cause does not wait for it");
    for (name, value) in [
        ("otel.name", "evict"),
        ("faas.name", "a/first"),
        ("evalpool.tenant", "a"),
        ("evalpool.close.reason", "capacity"),
        ("evalpool.close.how", ""),
    ] {
        assert_eq!(evicted.field(name), value, "{name}");
    }
    assert!(evicted.field("evalpool.close.unused_seconds").parse::<f64>().unwrap() >= 3.0);
    spy.let_go_of_permits();
    newcomer.await.unwrap().unwrap();
    let evicted = spans.last("close");
    assert!(evicted.has_ended && evicted.field("evalpool.close.how") == "drained");
    spans.forget();
    pool.close().await;
    let closed = spans.last("close");
    assert!(closed.has_ended);
    let fields = ["otel.name", "evalpool.close.reason", "evalpool.close.how", "evalpool.close.unused_seconds"];
    assert_eq!(fields.map(|field| closed.field(field)), ["close", "shutdown", "drained", ""]);
}

#[tokio::test]
async fn a_host_function_is_a_part_of_the_run() {
    let spans = Spans::here();
    let pool = builder(EngineKind::Direct).build().unwrap();
    let bytes = wasm(
        r#"(module (import "extism:host/user" "mine" (func $mine (param i64) (result i64)))
            (func (export "run") (drop (call $mine (i64.const 0)))))"#,
    );
    let mine = HostFunction::new("mine", [ValType::I64], [ValType::I64], |_, args| {
        tracing::info_span!(target: "evalpool::span", "within").in_scope(|| Ok(args.to_vec()))
    });
    let spec = Spec::new(Source::bytes(bytes.clone())).host_function(mine);
    pool.evaluator("calls", spec).unwrap().evaluate("").await.unwrap();
    let host_call = spans.last("host_call");
    assert_eq!((host_call.parent, host_call.field("code.function.name")), ("run", "mine"));
    assert_eq!(spans.last("within").parent, "host_call", "what the function does is a part of it");
    let told = spans.last("evaluation");
    let (calls, digest) = (told.field("evalpool.usage.host_calls"), told.field("evalpool.plugin.digest"));
    assert_eq!((calls, digest), ("1", &*Digest::of(&bytes).to_string()));
    assert!(told.field("evalpool.usage.peak_memory_bytes").parse::<u64>().is_ok());
}

#[test]
fn a_trace_parent_without_a_source_is_not_known() {
    assert_eq!(TraceParent::current(), None);
}
