//! Initialisers that run in each instance, or once: the same answers, and where once cannot be, why.

use std::sync::Arc;

use evalpool::{
    Evaluator, EvaluatorPool, HostFunction, Init, Isolation, Source, Spec,
    config::{CodeCache, EngineKind},
};
use tokio::net::TcpListener;

use crate::{
    conformance::IMPORTS,
    program::{Folder, printed, refusal, run},
    support::{
        CALL_HOST, CRASH, ENGINES, GREET, MIRROR, PANICS, TEXT, TOTALS, WORDS, builder, eventually, settings, wasm,
    },
};

const BOTH: [Isolation; 2] = [Isolation::Fresh, Isolation::Reuse];

/// Its initialisers, a start function and `_initialize`, change all that there is: globals of each type, memory that they
/// grow and fill, blocks and bytes of the kernel, variables. They read the setting `colour`. `run` tells all of it in one
/// number or more, and changes it again; `fails` traps.
const CHANGES: &str = r#"
    (global $a (mut i32) (i32.const 1)) (global $b (mut i64) (i64.const 2)) (global $fixed i32 (i32.const 7))
    (global $c (mut f32) (f32.const 3)) (global $d (mut f64) (f64.const 4))
    (global $e (mut v128) (v128.const i64x2 5 6))
    (data $passive "passive")
    (start $begin)
    (func $begin (global.set $a (i32.const -70000)) (call $change (i64.const 11)))
    (func (export "_initialize") (local $p i64)
        (drop (memory.grow (i32.const 20)))
        (memory.fill (i32.const 65536) (i32.const 170) (i32.const 1048576))
        (memory.init $passive (i32.const 1300000) (i32.const 0) (i32.const 7))
        (global.set $b (i64.const -1)) (global.set $c (f32.const nan:0x200001)) (global.set $d (f64.const -0.5))
        (global.set $e (v128.const i64x2 -3 77))
        (local.set $p (call $alloc (i64.const 100000)))
        (call $store64 (local.get $p) (i64.const 1234567))
        (call $free (local.get $p))
        (drop (call $alloc (i64.const 13)))
        ;; Where no block reaches.
        (call $store64 (i64.const 110000) (i64.const 99))
        (call $var_set (call $colour) (call $config_get (call $colour)))
        (call $var_set (call $shape) (call $message))
        (call $log_info (call $message)))
    (func $change (param $by i64)
        (global.set $b (i64.add (global.get $b) (local.get $by)))
        (i64.store (i32.const 2000) (i64.add (i64.load (i32.const 2000)) (local.get $by))))
    (func $sum (result i64) (local $i i32) (local $sum i64)
        (loop $each
            (local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 31)) (i64.load (local.get $i))))
            (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8)))
                (i32.shl (memory.size) (i32.const 16)))))
        (local.get $sum))
    (func (export "run") (result i32) (local $p i64)
        (local.set $p (call $alloc (i64.const 64)))
        (call $store64 (local.get $p) (call $sum))
        (call $store64 (i64.add (local.get $p) (i64.const 8)) (global.get $b))
        (call $store64 (i64.add (local.get $p) (i64.const 16)) (i64.add (call $memory_bytes) (local.get $p)))
        (call $store64 (i64.add (local.get $p) (i64.const 24)) (i64.add (call $load64 (i64.const 110000))
            (call $load64 (i64.const 90000))))
        (call $store64 (i64.add (local.get $p) (i64.const 32)) (i64x2.extract_lane 1 (global.get $e)))
        (call $store64 (i64.add (local.get $p) (i64.const 40)) (i64.reinterpret_f64 (global.get $d)))
        (call $store64 (i64.add (local.get $p) (i64.const 48)) (i64.extend_i32_u (i32.reinterpret_f32 (global.get $c))))
        (call $store64 (i64.add (local.get $p) (i64.const 56)) (i64.extend_i32_s (global.get $a)))
        (call $output_set (local.get $p) (i64.const 64))
        (global.set $a (i32.add (global.get $a) (global.get $fixed)))
        (call $change (call $input64 (i64.const 0)))
        (memory.init $passive (i32.const 3000) (i32.const 0) (i32.const 7))
        (i32.const 0))
    (func (export "colours") (result i32)
        (call $block (call $var_get (call $colour))) (call $var_set (call $colour) (call $shape)) (i32.const 0))
    (func (export "shapes") (result i32) (call $block (call $var_get (call $shape))) (i32.const 0))
    ;; Not at once: where a function begins with a trap, Cranelift makes one of the check of the deadline as well, at another
    ;; offset, and which of them is met depends on the moment.
    (func (export "fails") (result i32) (call $change (i64.const 1)) unreachable)"#;

/// Entry points and inputs.
type Calls<'a> = &'a [(&'a str, &'static [u8])];

fn unset() -> Spec {
    let bytes = wasm(&format!("(module {IMPORTS} {CHANGES})"));
    Spec::new(Source::bytes(bytes)).entry_point("run")
}

pub(crate) fn changes() -> Spec {
    unset().config("colour", "blue")
}

pub(crate) fn pool() -> EvaluatorPool {
    builder(EngineKind::Direct).capacity(8).max_instances(16).build().unwrap()
}

/// An evaluator that was called, and either begins with what its initialisers did, or says why not.
pub(crate) async fn once(pool: &EvaluatorPool, name: &str, spec: Spec) -> (Evaluator, Option<String>) {
    let evaluator = pool.register(name, spec.init(Init::Once)).unwrap();
    let first = evaluator.evaluate("").await;
    assert!(!first.is_err_and(|error| error.kind().as_str() == "invalid_plugin"), "{name} cannot be built");
    let init = || pool.info(name).unwrap().init;
    eventually("it is known how it is initialised", || init().in_use || init().refused.is_some()).await;
    assert_eq!(init().mode, Init::Once);
    // Instances that were made before stay, and are used first.
    for _ in 0..3 {
        let _ = evaluator.evaluate("").await;
    }
    (evaluator, init().refused)
}

/// What it comes to: the output, or the kind of the error with its text and where the guest was.
pub(crate) async fn call(evaluator: &Evaluator, entry_point: &str, input: &'static [u8]) -> Result<Vec<u8>, String> {
    let called = evaluator.entry_point(entry_point).evaluate(input).await;
    called
        .map(|response| response.bytes().to_vec())
        .map_err(|error| format!("{} {error} {:?}", error.kind(), error.last_words()))
}

/// Both give the same answers to the same calls.
async fn same(each: &Evaluator, once: &Evaluator, calls: Calls<'_>) {
    for (entry_point, input) in calls {
        let expected = call(each, entry_point, input).await;
        assert_eq!(call(once, entry_point, input).await, expected, "{} {entry_point}", once.name());
    }
}

#[tokio::test]
async fn an_instance_that_begins_initialised_is_like_one_that_initialised_itself() {
    let pool = pool();
    for (isolation, fuel) in BOTH.into_iter().zip([None, Some(1_000_000_000)]) {
        let spec = changes().isolation(isolation).fuel(fuel);
        let (once, refused) = once(&pool, "once", spec.clone()).await;
        assert_eq!(refused, None);
        let each = pool.register("each", spec).unwrap();
        for _ in 0..4 {
            let _ = each.evaluate("").await;
        }
        let calls: Calls<'_> = &[
            ("run", b""),
            ("run", b"12345678"),
            ("colours", b""),
            ("run", b"9"),
            ("colours", b""),
            ("shapes", b""),
            ("fails", b""),
            ("_initialize", b""),
            ("run", b"last"),
        ];
        same(&each, &once, calls).await;
        assert_eq!(call(&each, "shapes", b"").await.unwrap(), b"message");
    }
    pool.close().await;
    assert_eq!((pool.memory().code, pool.slots().unwrap().live.instances), (0, 0));
}

#[tokio::test]
async fn every_fixture_gives_the_same_answers() {
    let pool = pool();
    let host = || HostFunction::bytes("host_upper", |bytes| Ok(bytes.to_ascii_uppercase()));
    let fixtures: [(&str, &[u8], Calls); 8] = [
        ("greet", GREET, &[("greet", br#"{"name":"Ada"}"#), ("greet", b"")]),
        (
            "text",
            TEXT,
            &[("upper", b"abc"), ("counter", b""), ("counter", b""), ("count_vowels", b"aeb"), ("fail", b"")],
        ),
        ("crash", CRASH, &[("say", b"x"), ("crash", b""), ("leave", b""), ("say", b"y")]),
        ("words", WORDS, &[("word_count", b"a b c"), ("remember", b"1"), ("remember", b"2"), ("setting", b"colour")]),
        ("totals", TOTALS, &[("echo", b"x"), ("transform", b"{}"), ("log_it", b"x"), ("echo", b"")]),
        ("host", CALL_HOST, &[("call_host", b"abc"), ("call_host", b"")]),
        ("panics", PANICS, &[("last", b"x"), ("last", b"")]),
        ("mirror", MIRROR, &[("mirror", b"{}")]),
    ];
    let mut in_use = Vec::new();
    for (name, plugin, calls) in fixtures {
        let spec = Spec::bytes(plugin.to_vec()).config("colour", "blue").host_function(host()).entry_point(calls[0].0);
        let (evaluator, refused) = once(&pool, &format!("{name}/once"), spec.clone()).await;
        let each = pool.register(name, spec).unwrap();
        same(&each, &evaluator, calls).await;
        same(&each, &evaluator, calls).await;
        match refused {
            None => in_use.push(name),
            Some(why) => assert_eq!(why, "it has no initialisers", "{name}"),
        }
    }
    assert!(in_use.contains(&"words"), "{in_use:?}");
    pool.close().await;
}

/// Its initialiser draws eight random bytes, and looks at the monotonic clock; `run` tells both, with the clock as it is now.
pub(crate) const DRAWS: &str = r#"(module
    (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u64" (func $store64 (param i64 i64)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (memory (export "memory") 1)
    (func (export "_initialize")
        (drop (call $random (i32.const 0) (i32.const 8))) (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 8))))
    (func (export "run") (result i32) (local $p i64)
        (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 16)))
        (local.set $p (call $alloc (i64.const 24)))
        (call $store64 (local.get $p) (i64.load (i32.const 0)))
        (call $store64 (i64.add (local.get $p) (i64.const 8)) (i64.load (i32.const 8)))
        (call $store64 (i64.add (local.get $p) (i64.const 16)) (i64.load (i32.const 16)))
        (call $output_set (local.get $p) (i64.const 24)) (i32.const 0)))"#;

#[tokio::test]
async fn what_initialisers_drew_is_shared_and_time_does_not_go_back() {
    let pool = pool();
    let spec = Spec::new(Source::bytes(wasm(DRAWS)));
    let (evaluator, refused) = once(&pool, "draws", spec).await;
    assert_eq!(refused, None);
    let mut drawn = Vec::new();
    for _ in 0..3 {
        let said = call(&evaluator, "run", b"").await.unwrap();
        let word = |at: usize| u64::from_le_bytes(said[at * 8..][..8].try_into().unwrap());
        assert!(word(2) >= word(1), "{} after {}", word(2), word(1));
        drawn.push((word(0), word(1)));
    }
    assert!(drawn.iter().all(|it| *it == drawn[0]), "{drawn:?}");
    // A runtime that is built anew draws anew.
    evaluator.unload().await;
    let _ = evaluator.evaluate("").await;
    eventually("it is initialised once again", || pool.info("draws").unwrap().init.in_use).await;
    for _ in 0..3 {
        let _ = evaluator.evaluate("").await;
    }
    assert_ne!(call(&evaluator, "run", b"").await.unwrap()[..8], drawn[0].0.to_le_bytes());
    pool.close().await;
}

#[tokio::test]
async fn where_initialisers_cannot_run_once_they_run_in_each_instance_and_the_reason_is_told() {
    let pool = pool();
    let begin = |imports: &str, begin: &str, more: &str| {
        let run = r#"(func (export "run") (result i32) (call $out (i64.load (i32.const 500))) (i32.const 0))"#;
        let count = "(i64.store (i32.const 500) (i64.add (i64.load (i32.const 500)) (i64.const 1)))";
        let begin = format!("(func (export \"_initialize\") {count} {begin})");
        Spec::bytes(wasm(&format!("(module {imports} {IMPORTS} {more} {begin} {run})")))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (host, url) =
        (listener.local_addr().unwrap().to_string(), format!("http://{}/", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        }
    });
    let request = format!("{{\"url\":\"{url}\",\"method\":\"GET\"}}");
    let data = format!("(data (i32.const 600) \"{}\")", request.replace('"', "\\\""));
    let ask = format!("(drop (call $http (call $text (i32.const 600) (i32.const {})) (i64.const 0)))", request.len());
    let meets = HostFunction::bytes("meet", |bytes| Ok(bytes.to_vec()));
    let close = r#"(import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))"#;
    let meet = r#"(import "extism:host/user" "meet" (func $meet (param i64) (result i64)))"#;
    let table = "(table $t 2 funcref)";
    let nothing = "(func (export \"run\"))";
    let elements = "(table $t 2 funcref) (elem $e funcref (ref.null func))";
    let instructions = [
        ("table.set", "(table.set $t (i32.const 0) (ref.null func))", table),
        ("table.fill", "(table.fill $t (i32.const 0) (ref.null func) (i32.const 1))", table),
        ("table.grow", "(drop (table.grow $t (ref.null func) (i32.const 1)))", table),
        ("table.copy", "(table.copy $t $t (i32.const 0) (i32.const 1) (i32.const 1))", table),
        ("table.init", "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1))", elements),
        ("elem.drop", "(elem.drop $e)", elements),
        ("data.drop", "(data.drop $d)", "(data $d \"x\")"),
    ];
    let cases: [(&str, Spec, &str); 7] = [
        ("none", Spec::bytes(wasm(&format!("(module {nothing})"))), "it has no initialisers"),
        (
            "reference",
            begin("", "", "(global (mut funcref) (ref.null func))"),
            "it has a mutable global that is a reference",
        ),
        (
            "host",
            begin(meet, "(drop (call $meet (call $digits)))", "").host_function(meets),
            "its initialisers call extism:host/user::meet",
        ),
        ("http", begin("", &ask, &data).allowed_hosts([host]), "its initialisers call extism:host/env::http_request"),
        ("closes", begin(close, "(drop (call $close (i32.const 1)))", ""), "its initialisers close a standard stream"),
        ("extern", begin("", "", "(table 1 externref)"), "it uses externref or collected references"),
        (
            "wide",
            begin("", "", "(memory $other 1)"),
            "it uses externref or collected references, exceptions or several memories",
        ),
    ];
    let instructions =
        instructions.map(|(name, code, more)| (name, begin("", code, more), format!("it has the instruction {name}")));
    let cases = cases.map(|(name, spec, why)| (name, spec, why.to_owned()));
    for (name, spec, why) in cases.into_iter().chain(instructions) {
        let (evaluator, refused) = once(&pool, name, spec.entry_point("run")).await;
        assert!(refused.as_ref().is_some_and(|refused| refused.starts_with(&why)), "{name}: {refused:?}");
        if name != "none" {
            assert_eq!(call(&evaluator, "run", b"").await, Ok(1_u64.to_le_bytes().to_vec()), "{name}");
        }
        evaluator.close().await;
    }
    let module = Source::bytes(wasm(r#"(module (func (export "f")))"#));
    let spec = begin(r#"(import "other" "f" (func))"#, "", "").link("other", module);
    assert_eq!(once(&pool, "linked", spec.entry_point("run")).await.1.unwrap(), "it is linked with other modules");
    pool.close().await;
}

#[tokio::test]
async fn what_leaves_too_much_in_memory_runs_in_each_instance() {
    let pool = pool();
    let fills = r#"(module (memory 600) (func (export "_initialize") (memory.fill (i32.const 0) (i32.const 1) (i32.const 37748736)))
        (func (export "run")))"#;
    let (_, refused) = once(&pool, "fills", Spec::bytes(wasm(fills))).await;
    assert_eq!(refused.unwrap(), "after its initialisers its memory holds 37748736 bytes, and 32 MiB is the most");
    pool.close().await;
}

#[tokio::test]
async fn a_state_is_compiled_once_for_all_that_begin_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(EngineKind::Direct);
    settings.engine.code_cache = CodeCache::Folder(folder.path().join("code"));
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let files = || std::fs::read_dir(folder.path().join("code")).unwrap().count();
    let (first, _) = once(&pool, "first", unset()).await;
    assert_eq!(files(), 2, "the plugin, and what begins initialised");
    first.unload().await;
    let _ = once(&pool, "second", unset()).await;
    let _ = first.evaluate("").await;
    eventually("it is initialised once again", || pool.info("first").unwrap().init.in_use).await;
    assert_eq!(files(), 2, "the same state");
    let (third, _) = once(&pool, "third", changes().config("colour", "red")).await;
    assert_eq!(files(), 2, "what comes of config values is not written to disk");
    assert_eq!(call(&third, "colours", b"").await.unwrap(), b"red");
    for name in ["fourth", "fifth"] {
        let _ = once(&pool, name, Spec::new(Source::bytes(wasm(DRAWS)))).await;
        assert_eq!(files(), 3, "the plugin: nobody would find again what it drew");
    }
    pool.close().await;
}

#[tokio::test]
async fn what_comes_of_config_values_is_shared_within_a_tenant_alone() {
    let pool = pool();
    let mut code = Vec::new();
    for (name, spec) in [
        ("a/first", changes()),
        ("a/second", changes()),
        ("b/first", changes()),
        // They read none.
        ("a/unset", unset()),
        ("b/unset", unset()),
    ] {
        assert_eq!(once(&pool, name, spec).await.1, None);
        code.push(pool.memory().code);
    }
    let grows: Vec<bool> = code.windows(2).map(|pair| pair[0] < pair[1]).collect();
    assert_eq!(grows, [false, true, true, false], "{code:?}");
    pool.close().await;
}

#[tokio::test]
async fn a_close_while_it_is_compiled_leaves_nothing() {
    for workers in [true, false] {
        let mut settings = settings(EngineKind::Direct);
        if !workers {
            settings.engine.compile_workers = evalpool::config::CompileWorkers::Off;
        }
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        // Much code, so that it is closed in the middle of a compile, at one moment or another.
        let many: String = (0..2000)
            .fold(String::new(), |all, n| all + &format!("(func (export \"f{n}\") (call $change (i64.const {n})))"));
        let bytes = wasm(&format!("(module {IMPORTS} {CHANGES} {many})"));
        let spec = Spec::new(Source::bytes(bytes)).entry_point("run").init(Init::Once);
        for round in 0..6 {
            let evaluator = pool.register("closed", spec.clone().config("colour", round.to_string())).unwrap();
            evaluator.evaluate("").await.unwrap();
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            evaluator.close().await;
        }
        pool.close().await;
        let slots = pool.slots().unwrap();
        assert_eq!((slots.live.instances, slots.live.memories), (0, 0));
        eventually("no worker compiles", || pool.compile_workers().is_none_or(|workers| workers.busy == 0)).await;
        assert_eq!(pool.memory().code, 0);
    }
}

#[tokio::test]
async fn an_engine_that_cannot_initialise_once_says_so() {
    for engine in ENGINES {
        let pool = builder(engine).capacity(1).build().unwrap();
        let prepared = pool.prepare("once", Spec::bytes(WORDS).entry_point("remember").init(Init::Once)).await;
        let mut settings = settings(engine);
        settings.engine.init = Init::Once;
        let built = EvaluatorPool::from_settings(&settings).map_err(|error| error.to_string());
        if engine == EngineKind::Extism {
            let said = prepared.err().unwrap().to_string();
            assert!(said.contains("set init = each, or choose the direct engine"), "{said}");
            assert!(built.unwrap_err().contains("set init = each, or choose the direct engine"));
            continue;
        }
        assert_eq!(prepared.unwrap().info().unwrap().init.refused, None);
        let built = Arc::new(built.unwrap());
        let words = || Spec::bytes(WORDS).entry_point("remember");
        let _ = built.register("by-settings", words()).unwrap();
        let _ = built.register("by-spec", words().init(Init::Each)).unwrap();
        let mode = |name| built.info(name).unwrap().init.mode;
        assert_eq!((mode("by-settings"), mode("by-spec")), (Init::Once, Init::Each), "what a spec says wins");
    }
}

#[test]
fn the_command_line_says_how_often_initialisers_run() {
    let folder = Folder::new();
    let words = folder.file("words.wasm", WORDS);
    let call = ["run", &words, "--entry", "remember", "--input", "one", "--init"];
    assert_eq!(printed(&run(&[&call[..], &["once"]].concat())), "one");
    assert!(refusal(&run(&[&call[..], &["twice"]].concat()), 2).contains("'--init <each|once>'"));
    let line = refusal(&run(&[&call[..], &["once", "--engine", "extism", "--trusted"]].concat()), 1);
    assert!(line.starts_with("invalid_request: "), "{line}");
}
