//! Each engine on real plugins: answers, classified failures, and interruption.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evalpool::{
    Data, Evaluator, EvaluatorPool, HostFunction, Isolation, Source, Spec,
    config::{EngineKind, LimitSettings},
    engine::{Val, ValType},
};
use serde_json::{Value, json};

use crate::support::{CALL_HOST, ENGINES, GREET, NO_ABORT, TEXT, TOTALS, WORDS, builder, eventually, patient, wasm};

fn pool(engine: EngineKind) -> EvaluatorPool {
    builder(engine).capacity(4).build().unwrap()
}

fn spec(bytes: &'static [u8], entry_point: &str) -> Spec {
    Spec::new(Source::bytes(bytes)).entry_point(entry_point)
}

fn from_text(text: &str) -> Spec {
    Spec::new(Source::bytes(wasm(text)))
}

async fn kind_of(evaluator: &Evaluator, data: impl Into<Data>) -> String {
    let error = evaluator.evaluate(data).await.unwrap_err();
    assert!(!error.to_string().contains("/root"), "a host path in {error}");
    error.kind().to_string()
}

async fn greet_greets(engine: EngineKind) {
    let pool = pool(engine);
    let greet = pool.evaluator("greet", spec(GREET, "greet")).unwrap();
    let response = greet.evaluate(json!({"name": "Ada"})).await.unwrap();
    assert_eq!(response.json::<Value>().unwrap(), json!({"greeting": "Hello, Ada!"}));
    assert_eq!(response.evaluator(), greet.id());
    assert_eq!(response.digest(), evalpool::Digest::of(GREET));
    assert!(response.timings().build > Duration::ZERO);
    assert_eq!(greet.evaluate(json!({"name": "Bo"})).await.unwrap().timings().build, Duration::ZERO);
    assert_eq!(kind_of(&greet, "not json").await, "guest_error");
    pool.close().await;
}

async fn plugins_made_with_official_pdks_and_in_c_answer(engine: EngineKind) {
    let pool = pool(engine);
    let words = pool.evaluator("words", spec(WORDS, "word_count")).unwrap();
    assert_eq!(words.evaluate("the naïve café").await.unwrap().json::<Value>().unwrap()["words"], 3);
    let totals = pool.evaluator("totals", spec(TOTALS, "transform")).unwrap();
    let order = json!({"items": [{"price": 2.5, "qty": 3}, {"price": 1.0, "qty": 3}]});
    assert_eq!(totals.evaluate(order).await.unwrap().json::<Value>().unwrap(), json!({"total": 10.5, "lines": 2}));
    let upper = pool.evaluator("upper", spec(TEXT, "upper")).unwrap();
    assert_eq!(upper.evaluate("abc").await.unwrap().bytes(), "ABC");
    let fail = pool.evaluator("fail", spec(TEXT, "fail")).unwrap();
    let error = fail.evaluate("my own words").await.unwrap_err();
    assert_eq!(error.to_string(), "the plugin reported an error: my own words");
    pool.close().await;
}

async fn each_failure_of_a_guest_has_its_kind(engine: EngineKind) {
    let pool = builder(engine)
        .capacity(2)
        .limits(LimitSettings { output_size: 1024, memory: 4 << 20, ..patient() })
        .build()
        .unwrap();
    let env = |body: &str| {
        format!(
            r#"(module
                (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
                (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
                (memory (export "memory") 1)
                (func (export "run") (result i32) {body}))"#
        )
    };
    let exit = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (func (export "run") (call $exit (i32.const 3))))"#;
    // extism believes the length, which is over every limit.
    let wraps = if engine == EngineKind::Extism { "output_too_large" } else { "guest_error" };
    let cases = [
        ("guest_trap", env("unreachable")),
        ("guest_trap", env("(i32.load (i32.const -1))")),
        ("guest_trap", r#"(module (func $r (export "run") (call $r)))"#.to_owned()),
        ("exec_timeout", env("(loop br 0) i32.const 0")),
        ("guest_error", env("i32.const 7")),
        ("guest_exit", exit.to_owned()),
        ("out_of_memory", env("(drop (memory.grow (i32.const 1000))) i32.const 0")),
        ("output_too_large", env("(call $output_set (call $alloc (i64.const 2000)) (i64.const 2000)) i32.const 0")),
        (wraps, env("(call $output_set (call $alloc (i64.const 8)) (i64.const -1)) i32.const 0")),
    ];
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        for (kind, text) in &cases {
            let spec = from_text(text).isolation(isolation);
            let spec = if *kind == "exec_timeout" { spec.exec_timeout(Duration::from_millis(200)) } else { spec };
            let evaluator = pool.evaluator("case", spec).unwrap();
            for _ in 0..2 {
                assert_eq!(kind_of(&evaluator, "").await, *kind, "{text} {isolation:?}");
            }
        }
    }
    let fuel = from_text(&env("(loop br 0) i32.const 0")).fuel(Some(100_000));
    let evaluator = pool.evaluator("fuel", fuel).unwrap();
    assert_eq!(kind_of(&evaluator, "").await, "out_of_fuel");
    pool.close().await;
    assert_eq!(pool.runtimes(), 0);
}

async fn each_plugin_that_is_not_valid_is_refused_with_its_kind(engine: EngineKind) {
    let pool = pool(engine);
    let unknown = r#"(module (import "env" "mystery" (func)) (func (export "run")))"#;
    let wild = r#"(module (import "extism:host/env" "no_such" (func)) (func (export "run")))"#;
    let mistyped = r#"(module (import "extism:host/env" "alloc" (func (param i32))) (func (export "run")))"#;
    let data = r#"(module (memory 1) (data (i32.const 65536) "x") (func (export "run")))"#;
    let start = r#"(module (func $s unreachable) (start $s) (func (export "run")))"#;
    let body = {
        // Valid around its function, not in it: only a compile can tell.
        let mut bytes = wasm(r#"(module (func (export "run") (drop (i32.const 0))))"#);
        let at = bytes.windows(2).rposition(|pair| pair == [0x41, 0x00]).unwrap();
        bytes[at] = 0x43;
        bytes
    };
    let manifest = &br#"{"wasm":[{"path":"/etc/passwd"}]}"#[..];
    let cases: [(&str, Spec); 9] = [
        ("invalid_plugin", spec(NO_ABORT, "word_count")),
        ("invalid_plugin", from_text(unknown)),
        ("invalid_plugin", from_text(wild)),
        ("invalid_plugin", from_text(mistyped)),
        ("invalid_plugin", from_text(data)),
        ("invalid_plugin", from_text(start)),
        ("invalid_plugin", Spec::new(Source::bytes(body))),
        ("invalid_plugin", Spec::new(Source::bytes(manifest))),
        ("entry_point_missing", spec(GREET, "great")),
    ];
    for (kind, spec) in cases {
        let shown = format!("{:.120}", format!("{spec:?}"));
        let evaluator = pool.evaluator("bad", spec).unwrap();
        assert_eq!(kind_of(&evaluator, "").await, kind, "{shown}");
    }
    eventually("everything is closed", || pool.runtimes() == 0).await;
}

async fn a_fresh_instance_knows_nothing_and_a_reused_one_remembers(engine: EngineKind) {
    let pool = pool(engine);
    let fresh = pool.evaluator("fresh", spec(TEXT, "counter")).unwrap();
    let reuse = pool.evaluator("reuse", spec(TEXT, "counter").isolation(Isolation::Reuse)).unwrap();
    for call in 1..=5 {
        assert_eq!(fresh.evaluate("").await.unwrap().bytes(), "1");
        assert_eq!(reuse.evaluate("").await.unwrap().bytes(), &call.to_string());
    }
    let other = pool.evaluator("other", spec(TEXT, "counter").isolation(Isolation::Reuse)).unwrap();
    assert_eq!(other.evaluate("").await.unwrap().bytes(), "1");
    pool.close().await;
}

/// Whatever the guest has said before, and whoever reads that.
async fn an_instance_that_trapped_or_exited_is_not_used_again(engine: EngineKind) {
    let pool = pool(engine);
    // Ends as `$END` says if there is an input. Without one, it returns how often it was called before.
    let guest = |end: &str| {
        format!(
            r#"(module
                (import "extism:host/env" "input_length" (func $length (result i64)))
                (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
                (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
                (import "extism:host/env" "error_set" (func $error (param i64)))
                (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (memory (export "memory") 1)
                (global $calls (mut i32) (i32.const 0))
                (func $say (local $at i64)
                    (local.set $at (call $alloc (i64.const 1)))
                    (call $store (local.get $at) (i32.const 33))
                    (call $error (local.get $at)))
                (func (export "run") (result i32)
                    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
                    (if (i64.ne (call $length) (i64.const 0)) (then {end}))
                    (i32.sub (global.get $calls) (i32.const 1))))"#
        )
    };
    for (end, kind, again) in [
        ("unreachable", "guest_trap", false),
        ("(call $say) unreachable", "guest_error", false),
        ("(call $exit (i32.const 3))", "guest_exit", false),
        ("(call $say) (call $exit (i32.const 3))", "guest_error", false),
        ("(call $say) (return (i32.const 1))", "guest_error", true),
        ("(return (i32.const 1))", "guest_error", true),
    ] {
        let evaluator = pool.evaluator("ends", from_text(&guest(end)).isolation(Isolation::Reuse)).unwrap();
        evaluator.evaluate("").await.unwrap();
        let first = kind_of(&evaluator, "end").await;
        assert_eq!(first, kind, "{end}");
        assert_eq!(evaluator.evaluate("").await.is_err(), again, "{end}");
    }
    pool.close().await;
}

/// On `extism` it is used again: nothing tells an exit with 0 from a return.
#[tokio::test]
async fn an_instance_that_exited_with_0_is_not_used_again_on_direct() {
    let pool = pool(EngineKind::Direct);
    let text = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (global $ran (mut i32) (i32.const 0))
        (func (export "run") (if (global.get $ran) (then unreachable))
            (global.set $ran (i32.const 1)) (call $exit (i32.const 0))))"#;
    let evaluator = pool.evaluator("exits", from_text(text).isolation(Isolation::Reuse)).unwrap();
    for _ in 0..3 {
        evaluator.evaluate("").await.unwrap();
    }
    pool.close().await;
}

async fn variables_and_config_reach_the_plugin(engine: EngineKind) {
    let pool = pool(engine);
    let remember = pool.evaluator("remember", spec(WORDS, "remember").isolation(Isolation::Reuse)).unwrap();
    remember.evaluate("a").await.unwrap();
    assert_eq!(remember.evaluate("b").await.unwrap().bytes(), "ab");
    let setting = pool.evaluator("setting", spec(WORDS, "setting").config("colour", "blue")).unwrap();
    assert_eq!(setting.evaluate("colour").await.unwrap().bytes(), "blue");
    assert_eq!(kind_of(&setting, "shape").await, "guest_error");
    pool.close().await;
}

async fn host_functions_of_either_kind_are_called(engine: EngineKind) {
    let pool = pool(engine);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let upper = HostFunction::bytes("host_upper", move |input| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(input.to_ascii_uppercase())
    });
    let ours = pool.evaluator("ours", spec(CALL_HOST, "call_host").host_function(upper)).unwrap();
    assert_eq!(ours.evaluate("quiet").await.unwrap().bytes(), "QUIET");
    pool.close().await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// The host's own notes of a guest's blocks come out of the guest's memory: of blocks of one byte there are fewer than fit.
#[tokio::test]
async fn each_block_costs_its_guest_what_it_costs_the_host() {
    let limits = LimitSettings { memory: 4 << 20, ..patient() };
    let pool = builder(EngineKind::Direct).capacity(4).limits(limits).build().unwrap();
    let times = |count: u32, body: &str| {
        format!(
            "(local.set $n (i32.const {count}))
             (loop $next {body} (br_if $next (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
        )
    };
    let block = "(drop (call $alloc (i64.const 1)))";
    let freed = "(call $free (call $alloc (i64.const 1)))";
    let large = "(call $free (call $alloc (i64.const 1000000)))";
    let rounds: String = (0..10).map(|_| times(10_000, block) + "(call $reset)").collect();
    for (body, kind) in [
        (times(20_000, block), None),
        (times(100_000, block), Some("out_of_memory")),
        // Given back by a reset, and not taken by a block that is used again.
        (rounds, None),
        (times(100_000, freed), None),
        // Also when they are cut from one that was freed, which takes no memory.
        (large.to_owned() + &times(10_000, block), None),
        (large.to_owned() + &times(40_000, block), Some("out_of_memory")),
    ] {
        let text = format!(
            r#"(module
                (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
                (import "extism:host/env" "free" (func $free (param i64)))
                (import "extism:host/env" "reset" (func $reset))
                (func (export "run") (local $n i32) {body}))"#
        );
        let evaluator = pool.evaluator("blocks", from_text(&text).isolation(Isolation::Reuse)).unwrap();
        for _ in 0..2 {
            let came = evaluator.evaluate("").await.err().map(|error| error.kind().as_str());
            assert_eq!(came, kind, "{body}");
        }
    }
    pool.close().await;
}

/// Pages: 17 that it declares, 7 that it takes, 3 of the kernel's for 128 KiB of input.
#[tokio::test]
async fn memory_counts_from_the_first_page_on_direct_and_from_the_first_call_on_extism() {
    let text = r#"(module (memory (export "memory") 17) (func (export "run") (drop (memory.grow (i32.const 7)))))"#;
    for (engine, pages, runs) in [
        (EngineKind::Extism, 16, false),
        (EngineKind::Extism, 17, true),
        (EngineKind::Direct, 26, false),
        (EngineKind::Direct, 27, true),
    ] {
        let pool = pool(engine);
        let evaluator = pool.evaluator("pages", from_text(text).memory(pages << 16)).unwrap();
        let given = evaluator.evaluate(vec![b'x'; 128 << 10]).await;
        assert_eq!(given.is_ok(), runs, "{engine:?} with {pages} pages");
        if engine == EngineKind::Direct && !runs {
            let error = given.unwrap_err();
            assert_eq!(error.kind(), "out_of_memory");
            assert!(error.to_string().contains("from their first page on"), "{error}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn no_spec_gets_more_memory_than_the_settings_allow_on_any_engine() {
    for engine in ENGINES {
        let limits = LimitSettings { memory: 2 << 20, ..patient() };
        let pool = builder(engine).capacity(4).limits(limits).build().unwrap();
        let grows = from_text(r#"(module (memory 1) (func (export "run") (drop (memory.grow (i32.const 40)))))"#);
        let starts = from_text(r#"(module (memory 40) (func (export "run")))"#);
        for (name, spec) in [("grows", grows), ("starts", starts)] {
            let evaluator = pool.evaluator(name, spec.memory(1 << 30)).unwrap();
            let error = evaluator.evaluate("").await.unwrap_err();
            assert_eq!(error.kind(), "out_of_memory", "{engine:?} {name}");
            assert!(error.to_string().contains("limits.memory is 2 MiB"), "{error}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn extisms_own_functions_run_on_its_engine_and_are_refused_by_the_other() {
    let function = || {
        extism::Function::new(
            "host_upper",
            [extism::PTR],
            [extism::PTR],
            extism::UserData::new(()),
            |plugin, inputs, outputs, _| {
                let text: String = plugin.memory_get_val(&inputs[0])?;
                plugin.memory_set_val(&mut outputs[0], text.to_uppercase())
            },
        )
    };
    for engine in ENGINES {
        let pool = pool(engine);
        let theirs = pool.evaluator("theirs", spec(CALL_HOST, "call_host").host_function(function())).unwrap();
        match engine {
            EngineKind::Extism => assert_eq!(theirs.evaluate("quiet").await.unwrap().bytes(), "QUIET"),
            _ => assert_eq!(kind_of(&theirs, "quiet").await, "invalid_request"),
        }
        pool.close().await;
    }
}

async fn a_host_function_that_panics_or_fails_costs_only_its_own_evaluation(engine: EngineKind) {
    let pool = pool(engine);
    let panics = HostFunction::new("host_upper", [ValType::I64], [ValType::I64], |_, args| match args {
        [Val::I64(_)] => panic!("a bug in a host function"),
        _ => Ok(vec![]),
    });
    let evaluator = pool
        .evaluator("panics", spec(CALL_HOST, "call_host").host_function(panics).isolation(Isolation::Reuse))
        .unwrap();
    for _ in 0..2 {
        assert_eq!(kind_of(&evaluator, "x").await, "internal");
    }
    let fails = HostFunction::bytes("host_upper", |_| Err(evalpool::HostFunctionError::new("no such row")));
    let evaluator = pool.evaluator("fails", spec(CALL_HOST, "call_host").host_function(fails)).unwrap();
    let error = evaluator.evaluate("x").await.unwrap_err();
    assert_eq!((error.kind().as_str(), error.to_string().contains("no such row")), ("guest_error", true), "{error}");
    pool.close().await;
}

async fn corner_14_a_nested_evaluation_is_saturated_rather_than_waiting_for_itself(engine: EngineKind) {
    let pool = builder(engine).capacity(1).build().unwrap();
    let inner = pool.evaluator("inner", spec(TEXT, "upper")).unwrap();
    let nested = inner.clone();
    let call = HostFunction::bytes("host_upper", move |input| {
        let nested = nested.evaluate_blocking(input.to_vec());
        Ok(nested.map_or_else(|error| error.kind().to_string().into_bytes(), |response| response.bytes().to_vec()))
    });
    let outer = pool.evaluator("outer", spec(CALL_HOST, "call_host").host_function(call)).unwrap();
    assert_eq!(outer.evaluate("x").await.unwrap().bytes(), "saturated");
    pool.close().await;
}

async fn dropping_an_evaluation_stops_its_guest_and_hurts_no_sibling(engine: EngineKind) {
    let pool = builder(engine)
        .capacity(1)
        .max_instances_per_evaluator(2)
        .limits(LimitSettings { exec_timeout: Duration::from_mins(10), ..patient() })
        .build()
        .unwrap();
    // Spins for ever on empty input, and for a while on any other.
    let text = r#"(module
        (import "extism:host/env" "input_length" (func $length (result i64)))
        (func (export "run") (result i32) (local $n i64)
            (if (i64.eqz (call $length)) (then (loop br 0)))
            (loop $while
                (local.set $n (i64.add (local.get $n) (i64.const 1)))
                (br_if $while (i64.lt_u (local.get $n) (i64.const 300000000))))
            i32.const 0))"#;
    let evaluator = pool.evaluator("spin", from_text(text)).unwrap();
    let endless = tokio::spawn({
        let evaluator = evaluator.clone();
        async move { evaluator.evaluate("").await }
    });
    let sibling = tokio::spawn({
        let evaluator = evaluator.clone();
        async move { evaluator.evaluate("x").await }
    });
    // On a machine that was stopped for a while, the sibling has ended meanwhile.
    let busy = || pool.snapshot().runtimes.iter().map(|runtime| runtime.busy).sum::<usize>();
    eventually("both run", || busy() == 2 || sibling.is_finished()).await;
    endless.abort();
    sibling.await.unwrap().expect("the sibling is not interrupted");
    // The guest is gone when the pool is: its place could not come back while it ran. A grace that no machine is too slow
    // for, and shorter than the guest's deadline.
    assert_eq!(pool.close_with(Duration::from_mins(1)).await, evalpool::CloseReport::Drained);
    assert_eq!(pool.runtimes(), 0);
}

fn callers_without_tokio_have_a_twin_that_blocks(engine: EngineKind) {
    let pool = pool(engine);
    let upper = pool.evaluator("upper", spec(TEXT, "upper")).unwrap();
    assert_eq!(upper.evaluate_blocking("abc").unwrap().bytes(), "ABC");
    let error = futures_util::FutureExt::now_or_never(upper.evaluate("abc")).unwrap().unwrap_err();
    assert_eq!(error.kind(), "invalid_request");
    drop(upper);
    let deadline = Instant::now() + Duration::from_mins(1);
    while pool.runtimes() > 0 {
        assert!(Instant::now() < deadline, "dropping the last handle closes the runtime");
        std::thread::yield_now();
    }
}

on_each_engine!(
    greet_greets,
    plugins_made_with_official_pdks_and_in_c_answer,
    each_failure_of_a_guest_has_its_kind,
    each_plugin_that_is_not_valid_is_refused_with_its_kind,
    a_fresh_instance_knows_nothing_and_a_reused_one_remembers,
    an_instance_that_trapped_or_exited_is_not_used_again,
    variables_and_config_reach_the_plugin,
    host_functions_of_either_kind_are_called,
    a_host_function_that_panics_or_fails_costs_only_its_own_evaluation,
    corner_14_a_nested_evaluation_is_saturated_rather_than_waiting_for_itself,
    dropping_an_evaluation_stops_its_guest_and_hurts_no_sibling,
);

#[test]
fn callers_without_tokio_have_a_twin_that_blocks_on_each_engine() {
    for engine in ENGINES {
        callers_without_tokio_have_a_twin_that_blocks(engine);
    }
}
