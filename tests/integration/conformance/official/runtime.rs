//! What the official suite asks of plugins, on both engines.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use evalpool::{
    HostFunction, HostFunctionError, Isolation, Source, Spec,
    config::{EngineKind, LimitSettings},
    engine::ValType,
};
use tokio::time::timeout;

use super::super::{IMPORTS, answers, env, fixture, http::http_server, pool, with_functions};
use crate::support::{ENGINES, TEXT, builder, on_threads, patient, wasm};

/// A plugin that calls a function of the host's, `mirror`, with its input's block and gives what comes.
pub(super) fn mirror() -> Spec {
    let import = r#"(import "extism:host/user" "mirror" (func $mirror (param i64) (result i64)))"#;
    imports(import, "(call $block (call $mirror (call $input_offset))) i32.const 0")
}

/// One with more imports.
fn imports(more: &str, body: &str) -> Spec {
    Spec::new(Source::bytes(wasm(&format!(r#"(module {more} {IMPORTS} (func (export "run") (result i32) {body}))"#))))
}

pub(super) fn mirrors() -> HostFunction {
    HostFunction::bytes("mirror", |block| Ok(block.to_vec()))
}

fn number(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

#[tokio::test]
async fn it_works_on_a_long_input_again_and_again() {
    // Of two functions of one name, the one in the plugin's own module is called.
    let other = HostFunction::new("mirror", [ValType::I64], [ValType::I64], |_, _| panic!("nothing imports it"));
    // Counts the bytes above `m`, and has the block with the number mirrored.
    let tally = r#"(module
        (import "extism:host/user" "mirror" (func $mirror (param i64) (result i64)))
        (import "extism:host/env" "input_length" (func $input_length (result i64)))
        (import "extism:host/env" "input_load_u8" (func $input8 (param i64) (result i32)))
        (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
        (import "extism:host/env" "store_u64" (func $store64 (param i64 i64)))
        (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
        (func (export "tally") (result i32) (local $at i64) (local $count i64)
            (loop $each
                (local.set $count (i64.add (local.get $count)
                    (i64.extend_i32_u (i32.gt_u (call $input8 (local.get $at)) (i32.const 109)))))
                (br_if $each (i64.lt_u (local.tee $at (i64.add (local.get $at) (i64.const 1))) (call $input_length))))
            (local.set $at (call $alloc (i64.const 8)))
            (call $store64 (local.get $at) (local.get $count))
            (call $output_set (call $mirror (local.get $at)) (i64.const 8))
            i32.const 0))"#;
    let input = "a plugin counts what is above the letter m\n".repeat(1500);
    let above = input.bytes().filter(|byte| *byte > b'm').count() as u64;
    for engine in ENGINES {
        for isolation in [Isolation::Fresh, Isolation::Reuse] {
            let pool = pool(engine);
            let spec = Spec::new(Source::bytes(wasm(tally))).entry_point("tally").isolation(isolation);
            let spec = spec.host_function(mirrors()).host_function(other.clone().in_module("test"));
            let given = answers(&pool, spec, &[input.as_bytes(); 60]).await;
            assert!(given.iter().all(|answer| *answer == Ok(number(above))), "{engine:?}: {:?}", given[0]);
            pool.close().await;
        }
    }
}

#[test]
fn plugin_threads_share_one_evaluator() {
    for engine in ENGINES {
        let pool = pool(engine);
        let evaluator = pool.evaluator("shared", fixture(TEXT, "upper")).unwrap();
        std::thread::scope(|threads| {
            for thread in 0..4 {
                let evaluator = &evaluator;
                threads.spawn(move || {
                    for call in 0..12 {
                        let response = evaluator.evaluate_blocking(format!("call {call} of {thread}")).unwrap();
                        assert_eq!(response.bytes(), &format!("CALL {call} OF {thread}"), "{engine:?}");
                    }
                });
            }
        });
        drop(pool);
    }
}

#[test]
fn cancel_ends_each_call_and_the_next_one_runs() {
    on_threads(async {
        for engine in ENGINES {
            let limits = LimitSettings { exec_timeout: Duration::from_hours(1), ..patient() };
            let pool = builder(engine).capacity(1).max_instances(2).limits(limits).build().unwrap();
            let spec = env("(if (i64.eqz (call $input_length)) (then (loop br 0))) (call $echo) i32.const 0");
            let evaluator = pool.evaluator("spins", spec.isolation(Isolation::Reuse)).unwrap();
            for _ in 0..5 {
                timeout(Duration::from_millis(100), evaluator.evaluate("")).await.expect_err("it never ends by itself");
                assert_eq!(evaluator.evaluate("next").await.unwrap().bytes(), "next", "{engine:?}");
            }
            pool.close().await;
        }
    });
}

#[tokio::test]
async fn fuel_that_is_used_up_ends_each_call() {
    for engine in ENGINES {
        for (fuel, isolation) in [(1, Isolation::Fresh), (20_000, Isolation::Fresh), (20_000, Isolation::Reuse)] {
            let pool = pool(engine);
            let spec = env("(loop br 0) i32.const 0").fuel(Some(fuel)).isolation(isolation);
            for answer in answers(&pool, spec, &[&b"x"[..]; 30]).await {
                assert_eq!(answer.unwrap_err().0, "out_of_fuel", "{engine:?} {fuel}");
            }
            pool.close().await;
        }
    }
}

#[tokio::test]
async fn multiple_instantiations_and_calls_are_more_than_a_store_holds() {
    // A store of wasmtime's holds 10,000 instances, and an instance of ours serves as many evaluations.
    for (engine, isolation) in [
        (EngineKind::Direct, Isolation::Fresh),
        (EngineKind::Direct, Isolation::Reuse),
        (EngineKind::Extism, Isolation::Reuse),
    ] {
        let pool = pool(engine);
        let evaluator = pool.evaluator("often", mirror().host_function(mirrors()).isolation(isolation)).unwrap();
        for call in 0..10_050_u32 {
            let given = evaluator.evaluate(call.to_le_bytes().to_vec()).await.unwrap();
            assert_eq!(given.bytes().to_vec(), call.to_le_bytes(), "{engine:?}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn globals_keep_their_values_while_an_instance_is_reused() {
    let counts = with_functions(
        "(global $calls (mut i64) (i64.const 0))",
        "(call $out (global.get $calls)) (global.set $calls (i64.add (global.get $calls) (i64.const 1))) i32.const 0",
    );
    for engine in ENGINES {
        let pool = pool(engine);
        let evaluator = pool.evaluator("counts", counts.clone().isolation(Isolation::Reuse)).unwrap();
        for call in 0..9_000 {
            assert_eq!(evaluator.evaluate("").await.unwrap().bytes().to_vec(), number(call), "{engine:?}");
        }
        pool.close().await;
    }
}

/// Manifests are the operator's, who says the same by a spec. A plugin's bytes are never read as one.
#[tokio::test]
async fn toml_manifest_and_manifest_ptr_len_are_refused_as_plugins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("upper.wasm");
    std::fs::write(&path, TEXT).unwrap();
    let path = path.display();
    let (pointer, length) = (TEXT.as_ptr() as usize, TEXT.len());
    let texts = [
        format!("[[wasm]]\npath = \"{path}\"\n"),
        format!(r#"{{"wasm":[{{"path":"{path}"}}]}}"#),
        format!(r#"{{"wasm":[{{"data":{{"ptr":{pointer},"len":{length}}}}}]}}"#),
        r#"(module (func (export "upper")))"#.to_owned(),
    ];
    for engine in ENGINES {
        let pool = pool(engine);
        for text in &texts {
            let spec = Spec::new(Source::bytes(text.clone())).entry_point("upper");
            let (kind, said) = answers(&pool, spec, &[b"x"]).await.remove(0).unwrap_err();
            assert!(kind == "invalid_plugin" && !said.contains("upper.wasm"), "{engine:?} {text}: {kind} {said}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn fuzz_reflect_plugin_gives_back_blocks_of_every_length() {
    // Each small length, and those beside the ends of pages.
    let lengths = (1..200)
        .chain((200..200_000).step_by(997))
        .chain((1..4).flat_map(|page| page * 65_536 - 90..page * 65_536 + 3));
    let input: Vec<u8> = (0..200_000_u32).map(|at| (at % 253) as u8).collect();
    for engine in ENGINES {
        let pool = pool(engine);
        let spec = mirror().host_function(mirrors()).isolation(Isolation::Reuse);
        let evaluator = pool.evaluator("mirror", spec).unwrap();
        for length in lengths.clone() {
            let given = evaluator.evaluate(input[..length].to_vec()).await.unwrap();
            assert!(given.bytes()[..] == input[..length], "{engine:?} {length}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn memory_max_ends_what_needs_more_and_lets_the_rest_run() {
    // The guest copies its input to a block: twice its size, and a few pages more.
    let input = vec![7; 2 << 20];
    for (engine, pages, fits) in [
        (EngineKind::Extism, 48, false),
        (EngineKind::Direct, 48, false),
        (EngineKind::Extism, 100, true),
        (EngineKind::Direct, 100, true),
    ] {
        let limits = LimitSettings { memory: pages << 16, ..patient() };
        let pool = builder(engine).capacity(1).max_instances(2).limits(limits).build().unwrap();
        let answer = answers(&pool, env("(call $echo) i32.const 0"), &[&input]).await.remove(0);
        match answer {
            Ok(output) => assert!(fits && output == input, "{engine:?} {pages}"),
            Err((kind, _)) => assert!(!fits && kind == "out_of_memory", "{engine:?} {pages}: {kind}"),
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn extism_error_that_was_set_is_told_whether_the_host_function_then_fails_or_not() {
    let import = r#"(import "extism:host/user" "mirror" (func $mirror (param i64) (result i64)))"#;
    let says = "(call $error_set (call $message)) (drop (call $mirror (call $digits))) i32.const 0";
    let fails = HostFunction::bytes("mirror", |_| Err(HostFunctionError::new("not this one")));
    for engine in ENGINES {
        let pool = pool(engine);
        for function in [mirrors(), fails.clone()] {
            let given = answers(&pool, imports(import, says).host_function(function), &[b"x"]).await.remove(0);
            let told = "the plugin reported an error: message".to_owned();
            assert_eq!(given, Err(("guest_error".to_owned(), told)), "{engine:?}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn userdata_of_a_host_function_is_what_it_captured() {
    for engine in ENGINES {
        let file = Arc::new(Mutex::new(tempfile::NamedTempFile::new().unwrap()));
        let captured = file.clone();
        let writes = HostFunction::bytes("mirror", move |block| {
            captured.lock().unwrap().write_all(block).map_err(|error| HostFunctionError::new(error.to_string()))?;
            Ok(block.to_vec())
        });
        let pool = pool(engine);
        let given = answers(&pool, mirror().host_function(writes), &[b"one, ", b"two"]).await;
        assert_eq!(given, [Ok(b"one, ".to_vec()), Ok(b"two".to_vec())], "{engine:?}");
        assert_eq!(std::fs::read(file.lock().unwrap().path()).unwrap(), b"one, two", "{engine:?}");
        pool.close().await;
    }
}

#[tokio::test]
async fn http_not_allowed_without_hosts() {
    let port = http_server(|_| -> Vec<u8> { panic!("nothing connects") });
    // A request of the plugin's own making: its input is the JSON.
    let asks = with_functions(
        "(func $copy (result i64) (call $echo) (call $output_offset))",
        "(call $block (call $http (call $copy) (i64.const 0))) i32.const 0",
    );
    for engine in ENGINES {
        let pool = pool(engine);
        let request = format!(r#"{{"url":"http://127.0.0.1:{port}/"}}"#);
        let (kind, text) = answers(&pool, asks.clone(), &[request.as_bytes()]).await.remove(0).unwrap_err();
        let ends_as = if engine == EngineKind::Direct { "guest_trap" } else { "guest_error" };
        assert!(kind == ends_as && text.contains("is not allowed"), "{engine:?}: {kind} {text}");
        pool.close().await;
    }
}

#[test]
fn http_post_sends_bodies_small_and_large() {
    let engines = if cfg!(feature = "extism-http") { &ENGINES[..] } else { &[EngineKind::Direct] };
    let port = http_server(|request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let text = format!("{} {body}", head.split(' ').next().unwrap());
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len())
    });
    // The input is the JSON of the request, a line break, and its body.
    let posts = with_functions(
        "(func $part (param $from i64) (param $to i64) (result i64) (local $p i64) (local $i i64)
            (local.set $p (call $alloc (i64.sub (local.get $to) (local.get $from))))
            (loop $each
                (call $store8 (i64.add (local.get $p) (local.get $i)) (call $input8 (i64.add (local.get $from) (local.get $i))))
                (br_if $each (i64.lt_u (i64.add (local.get $from) (local.tee $i (i64.add (local.get $i) (i64.const 1)))) (local.get $to))))
            (local.get $p))
        (func $end_of_line (result i64) (local $i i64)
            (loop $each (if (i32.ne (call $input8 (local.get $i)) (i32.const 10))
                (then (local.set $i (i64.add (local.get $i) (i64.const 1))) (br $each))))
            (local.get $i))",
        "(local $line i64) (local.set $line (call $end_of_line))
        (call $block (call $http (call $part (i64.const 0) (local.get $line))
            (call $part (i64.add (local.get $line) (i64.const 1)) (call $input_length)))) i32.const 0",
    );
    on_threads(async {
        for engine in engines {
            let pool = pool(*engine);
            for body in ["a few words".to_owned(), "0123456789".repeat(20_000)] {
                let input = format!("{{\"url\":\"http://127.0.0.1:{port}/\",\"method\":\"POST\"}}\n{body}");
                let spec = posts.clone().allowed_hosts(["127.0.0.1"]);
                let given = answers(&pool, spec, &[input.as_bytes()]).await.remove(0);
                assert!(given == Ok(format!("POST {body}").into_bytes()), "{engine:?}: {:.200}", format!("{given:?}"));
            }
            pool.close().await;
        }
    });
}

#[tokio::test]
async fn no_vars_beyond_their_bound_and_none_of_nothing() {
    let sets = "(call $var_set (call $colour) (call $input_offset))
        (call $block (call $var_get (call $colour))) i32.const 0";
    for engine in ENGINES {
        let pool = pool(engine);
        for isolation in [Isolation::Fresh, Isolation::Reuse] {
            let [fits, full] = [vec![3; 900_000], vec![3; 1 << 20]];
            let given = answers(&pool, env(sets).isolation(isolation), &[&fits, &full, b""]).await;
            assert!(given[0] == Ok(fits), "{engine:?}");
            assert!(
                given[1]
                    .as_ref()
                    .is_err_and(|(kind, text)| kind == "guest_error" && text.contains("Variable store is full"))
            );
            assert_eq!(given[2], Ok(vec![]), "{engine:?}: no block is no value");
        }
        pool.close().await;
    }
}

/// A linked module that counts how often its function runs, in its start function too.
fn counter(command: bool) -> Source {
    let name = if command { "_start" } else { "count" };
    Source::bytes(wasm(&format!(
        r#"(module
            (import "extism:host/user" "mirror" (func $mirror (param i64) (result i64)))
            (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (global $count (mut i64) (i64.const 0))
            (func $counts (export "{name}") (global.set $count (i64.add (global.get $count) (i64.const 1))))
            (func (export "counted") (result i64) (drop (call $mirror (i64.const 0))) (global.get $count))
            (start $counts))"#
    )))
}

#[tokio::test]
async fn linking_gives_each_instance_linked_modules_of_its_own() {
    let calls = |name: &str| {
        let import = format!(
            r#"(import "counter" "{name}" (func $count)) (import "counter" "counted" (func $counted (result i64)))"#
        );
        imports(&import, "(call $count) (call $count) (call $out (call $counted)) i32.const 0")
            .link("counter", counter(name == "_start"))
            .host_function(mirrors())
    };
    for engine in ENGINES {
        let pool = pool(engine);
        let fresh = answers(&pool, calls("count"), &[b"x"; 3].map(|input| &input[..])).await;
        assert_eq!(fresh, vec![Ok(number(3)); 3], "{engine:?}");
        let reused = calls("count").isolation(Isolation::Reuse);
        let reused = answers(&pool, reused, &[b"x"; 3].map(|input| &input[..])).await;
        assert_eq!(reused, [3, 5, 7].map(|count| Ok(number(count))), "{engine:?}");
        // wasmtime's linker, which extism uses, makes a new instance of a command for each call of one of its functions.
        let command = answers(&pool, calls("_start"), &[b"x"]).await.remove(0);
        let counted = if engine == EngineKind::Extism { 1 } else { 3 };
        assert_eq!(command, Ok(number(counted)), "{engine:?}");
        pool.close().await;
    }
}
