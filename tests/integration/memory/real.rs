//! The same on the `direct` engine, with real code and real memories.

use evalpool::{
    EvaluatorPool, Isolation, PoolBuilder, Source, Spec,
    config::{CodeCache, CompileWorkers, EngineKind},
};

use super::MIB;
use crate::{
    service::{Server, eventually},
    support::{self, TEXT, settings, wasm},
};

fn pool(memory: u64, set: impl FnOnce(&mut evalpool::Settings)) -> EvaluatorPool {
    let mut settings = settings(EngineKind::Direct);
    settings.pool.memory = memory;
    set(&mut settings);
    PoolBuilder::from(settings).build().unwrap()
}

/// A plugin whose memory begins with this many MiB and may grow to `most`. `run` answers nothing; `grow` grows it to the
/// most; `trap` does so and traps.
fn sized(mib: u64, most: u64) -> Vec<u8> {
    wasm(&format!(
        r#"(module
            (memory (export "memory") {} {})
            (func $grow (drop (memory.grow (i32.const {}))))
            (func (export "run"))
            (func (export "grow") (call $grow))
            (func (export "trap") (call $grow) unreachable)
            (global (export "id") i32 (i32.const {})))"#,
        mib * 16,
        most * 16,
        (most - mib) * 16,
        mib * 1000 + most
    ))
}

async fn within(pool: &EvaluatorPool, what: &str) {
    let held = || pool.memory().code + pool.memory().instances + pool.memory().cache;
    support::eventually(what, || held() <= pool.memory().limit).await;
}

fn spec(plugin: Vec<u8>) -> Spec {
    Spec::new(Source::bytes(plugin))
}

#[tokio::test]
async fn many_plugins_share_a_little_memory_and_every_answer_is_right() {
    for workers in [true, false] {
        let pool = pool(32 * MIB, |settings| {
            if !workers {
                settings.engine.compile_workers = CompileWorkers::Off;
            }
        });
        // Each with a megabyte of code and data of its own, and 2 MiB for an instance.
        let data = "x".repeat(1 << 20);
        let text = |n: u32| {
            wasm(&format!(
                r#"(module
                    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
                    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
                    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
                    (memory 32)
                    (data (i32.const 0) "{data}")
                    (func (export "run") (local $at i64)
                        (local.set $at (call $alloc (i64.const 1)))
                        (call $store (local.get $at) (i32.const {n}))
                        (call $output (local.get $at) (i64.const 1))))"#
            ))
        };
        for n in 0..40 {
            pool.register(&n.to_string(), spec(text(n))).unwrap();
        }
        let mut live_max = 0;
        for round in 0..3 {
            for n in 0..40_u8 {
                let answer = pool.get(&n.to_string()).unwrap().evaluate("").await.unwrap();
                assert_eq!(answer.bytes()[..], [n], "round {round}");
                let held = pool.memory();
                assert!(held.code + held.instances + held.cache <= held.limit, "{held:?}");
                live_max = live_max.max(pool.runtimes());
            }
        }
        assert!(live_max < 40, "they do not all fit");
        assert!(live_max > 4, "but many do: {live_max}");
        pool.close().await;
        assert_eq!(pool.memory().code, 0);
    }
}

#[tokio::test]
async fn the_same_bytes_are_weighed_once() {
    let pool = pool(256 * MIB, |_| {});
    let upper = |name: &str| pool.register(name, spec(TEXT.to_vec()).entry_point("upper")).unwrap();
    upper("0").evaluate("a").await.unwrap();
    let once = pool.memory().code;
    assert!(once > 0);
    for n in 1..10 {
        upper(&n.to_string()).evaluate("a").await.unwrap();
    }
    assert_eq!((pool.runtimes(), pool.memory().code), (10, once));
    pool.get("0").unwrap().close().await;
    assert_eq!(pool.memory().code, once);
    pool.close().await;
    assert_eq!(pool.memory().code, 0);
}

#[tokio::test]
async fn code_that_is_kept_takes_a_quarter_at_most() {
    // Few runtimes, so that there is room for it.
    let pool = pool(16 * MIB, |settings| settings.pool.capacity = 4);
    for n in 0..200 {
        let functions = "(func (result i32) (i32.const 7) (i32.add (i32.const 1)))".repeat(500);
        let plugin =
            wasm(&format!(r#"(module {functions} (func (export "run")) (global (export "n") i32 (i32.const {n})))"#));
        pool.register(&n.to_string(), spec(plugin)).unwrap().evaluate("").await.unwrap();
        assert!(pool.memory().cache <= 4 * MIB);
    }
    assert!(pool.memory().cache > 3 * MIB, "it is used: {:?}", pool.memory());
    pool.close().await;
}

#[tokio::test]
async fn what_guests_grew_to_is_counted_and_given_back_however_they_end() {
    let pool = pool(64 * MIB, |settings| {
        settings.engine.isolation = Isolation::Reuse;
        settings.engine.code_cache = CodeCache::Off;
    });
    let [large, small] = [("large", sized(1, 40)), ("small", sized(2, 30))]
        .map(|(name, plugin)| pool.register(name, spec(plugin).entry_point("run")).unwrap());
    small.evaluate("").await.unwrap();
    large.entry_point("grow").evaluate("").await.unwrap();
    assert!(pool.memory().instances >= 42 * MIB, "{:?}", pool.memory());
    small.entry_point("grow").evaluate("").await.unwrap();
    within(&pool, "two that are idle do not fit").await;
    for _ in 0..20 {
        assert_eq!(large.entry_point("trap").evaluate("").await.unwrap_err().kind(), "guest_trap");
    }
    within(&pool, "what is left is within the bound").await;
    pool.close().await;
    assert_eq!((pool.memory().code, pool.memory().cache), (0, 0));
    // What free slots keep is weighed now and then.
    pool.slots();
    assert!(pool.memory().instances < MIB, "{:?}", pool.memory());
}

#[test]
fn clients_are_told_to_come_again_and_a_plugin_that_never_fits_is_refused() {
    let server = Server::start(&[("POOL_MEMORY", "32MiB"), ("LIMITS_EXEC_TIMEOUT", "1h")]);
    let endless = r#"(module (memory 320) (func (export "run") (loop (br 0))))"#;
    assert_eq!(server.put("busy", &wasm(endless)).status, 201);
    let call = server.begin("POST", "/v1/evaluators/busy", "content-length: 0\r\n", b"");
    eventually("it runs", || server.metric("evalpool_instances_live", "busy") == 1);
    let refused = server.put("other", &sized(14, 20));
    refused.is(503, "overloaded");
    assert!(refused.header("retry-after").is_some());
    let never = server.put("never", &sized(40, 40));
    never.is(422, "invalid_plugin");
    assert!(never.text().contains("pool.memory is 32 MiB"), "{}", never.text());
    drop(call);
    eventually("it has ended", || server.metric("evalpool_instances_live", "busy") == 0);
    assert_eq!(server.put("other", &sized(14, 20)).status, 201, "as soon as there is room");
    assert_eq!(server.metric("evalpool_memory_limit_bytes", ""), 32 * MIB);
    assert!(server.metric("evalpool_memory_bytes", "instances") >= 14 * MIB);
}

#[tokio::test]
async fn names_of_exports_are_weighed_with_the_code() {
    let pool = pool(64 * MIB, |_| {});
    let exports: Vec<_> = (0..9_999).map(|name| format!(r#"(export "{name}" (func 0))"#)).collect();
    let exports = exports.concat();
    let plain = wasm(r#"(module (func (export "run")))"#);
    let named = wasm(&format!(r#"(module (func (export "run")) {exports})"#));
    let mut code = Vec::new();
    for plugin in [plain, named] {
        let evaluator = pool.evaluator("one", spec(plugin).entry_point("run")).unwrap();
        evaluator.evaluate("").await.unwrap();
        code.push(pool.memory().code);
        evaluator.close().await;
        assert_eq!(pool.memory().code, 0);
    }
    assert!(code[1] > code[0] + 3 * MIB, "{code:?}");
}
