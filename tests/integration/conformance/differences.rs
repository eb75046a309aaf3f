//! Where `direct` is meant to differ from Extism: what its list of differences says, shown on both engines where that is
//! safe. `OFFICIAL.md` and the list are read by `table`, which finds their tests by name.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use evalpool::{HostFunction, Isolation, Source, Spec, config::EngineKind};

use super::{IMPORTS, answers, env, official::steps::Steps, pool, with_functions};
use crate::support::{ENGINES, builder, log::Lines, process::alone, wasm};

const BOTH: [(EngineKind, bool); 2] = [(EngineKind::Extism, false), (EngineKind::Direct, true)];

#[tokio::test]
async fn notes_about_blocks_are_out_of_a_guests_reach() {
    for (engine, ours) in BOTH {
        let mut steps = Steps::default();
        let block = steps.alloc(64);
        // What would be the end of its header if a block began here: in use, 9 bytes, 7 of them used.
        steps.store8(block.plus(20), 1);
        steps.store64(block.plus(24), 0x0000_0007_0000_0009);
        let forged = steps.ask("length_unsafe", block.plus(32));
        steps.is(forged, if ours { 0 } else { 7 });
        steps.alloc(10);
        let header = steps.ask("load64", block.plus(64 + 4));
        steps.is(header, if ours { 0 } else { 0x0000_000a_0000_000a });
        // The kernel's own words are in front of the first block. Extism's last one is the output's length.
        steps.set("output_set", block, 5);
        let length = steps.ask("load64", 57);
        steps.is(length, if ours { 0 } else { 5 });
        let pool = pool(engine);
        steps.run_in(&pool, b"").await;
        pool.close().await;
    }
}

#[tokio::test]
async fn kernel_memory_is_what_its_blocks_need() {
    for (engine, ours) in BOTH {
        // Extism's kernel has a stack of 1 MiB in its memory, which guests can read and write.
        let mut steps = Steps::default();
        for at in [70_000, 500_000, 1_000_000] {
            steps.store64(at, 77);
            let loaded = steps.ask("load64", at);
            steps.is(loaded, if ours { 0 } else { 77 });
        }
        let pool = pool(engine);
        steps.run_in(&pool, b"").await;
        // The byte just beyond its end counts as within it, but is not there.
        let mut steps = Steps::default();
        let beyond = steps.byte("load8", if ours { 1 << 16 } else { 1 << 20 });
        steps.is(beyond, 0);
        let ended = steps.try_in(&pool, b"").await;
        assert_eq!(ended.err().as_deref(), if ours { None } else { Some("guest_trap") });
        pool.close().await;
    }
}

#[tokio::test]
async fn eight_bytes_just_below_the_input_are_0() {
    for (engine, ours) in BOTH {
        let mut steps = Steps::default();
        let below = steps.ask("input64", u64::MAX);
        steps.is(below, if ours { 0 } else { u64::from_le_bytes(*b"\x000123456") });
        let pool = pool(engine);
        steps.run_in(&pool, b"0123456789").await;
        pool.close().await;
    }
}

#[tokio::test]
async fn of_several_free_blocks_the_smallest_is_used_again() {
    for (engine, ours) in BOTH {
        let mut steps = Steps::default();
        let large = steps.alloc(1000);
        steps.alloc(8);
        let small = steps.alloc(200);
        steps.free(large);
        steps.free(small);
        // Fills the page, which free blocks are left alone until.
        steps.alloc(64_000);
        let again = steps.alloc(150);
        let pool = pool(engine);
        let results = steps.run_in(&pool, b"").await;
        let [large, small, again] = [large, small, again].map(|step| results.of(step));
        // Extism's kernel splits the first that is large enough.
        assert_eq!(again, if ours { small } else { large + 1000 - 150 });
        pool.close().await;
    }
}

/// On `direct` alone: Extism's kernel gives a block that is shorter than its length says.
#[tokio::test]
async fn a_length_that_wraps_around_is_out_of_memory() {
    let pool = pool(EngineKind::Direct);
    for length in [u64::MAX, u64::MAX - 11, u64::MAX - 12, 1 << 63, 1 << 32] {
        let mut steps = Steps::default();
        steps.alloc(length);
        assert_eq!(steps.try_in(&pool, b"").await.err().as_deref(), Some("out_of_memory"), "{length}");
    }
    pool.close().await;
}

/// On `direct` alone: extism follows a null pointer.
#[tokio::test]
async fn an_initialiser_runs_once_and_may_call_the_host() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let mark = HostFunction::new("mark", [], [], move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(vec![])
    });
    let text = format!(
        r#"(module (import "extism:host/user" "mark" (func $mark)) {IMPORTS}
            (func (export "_initialize") (call $mark) (call $var_set (call $colour) (call $digits)))
            (func (export "run") (result i32) (call $block (call $var_get (call $colour))) i32.const 0))"#
    );
    let spec = Spec::new(Source::bytes(wasm(&text))).host_function(mark).isolation(Isolation::Reuse);
    let pool = builder(EngineKind::Direct).capacity(1).max_instances(1).build().unwrap();
    let given = answers(&pool, spec, &[b"", b""]).await;
    assert_eq!(given, vec![Ok(b"0123456789".to_vec()); 2]);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    pool.close().await;
}

#[tokio::test]
async fn memory_grow_beyond_a_modules_own_maximum_gives_minus_1() {
    let text = r#"(module (memory (export "memory") 1 3)
        (func (export "run") (result i32) (i32.add (memory.grow (i32.const 3)) (i32.const 1))))"#;
    for (engine, ours) in BOTH {
        let pool = pool(engine);
        let answer = answers(&pool, Spec::new(Source::bytes(wasm(text))), &[b""]).await.remove(0);
        assert_eq!(answer.err().map(|(kind, _)| kind).as_deref(), (!ours).then_some("out_of_memory"), "{engine:?}");
        pool.close().await;
    }
}

#[tokio::test]
async fn tables_grow_to_their_limit() {
    let grow = with_functions(
        "(table $t 1 funcref)",
        "(call $out (i64.extend_i32_s (table.grow $t (ref.null func) (i32.const 100000)))) i32.const 0",
    );
    for (engine, ours) in BOTH {
        let pool = pool(engine);
        let given = answers(&pool, grow.clone(), &[b""]).await.remove(0);
        let size = if ours { -1_i64 } else { 1 };
        assert_eq!(given, Ok(size.to_le_bytes().to_vec()), "{engine:?}");
        pool.close().await;
    }
}

#[tokio::test]
async fn names_of_variables_and_settings_have_at_most_64_kib() {
    for (engine, ours) in BOTH {
        let pool = pool(engine);
        for body in ["(call $var_set (call $long) (call $digits))", "(drop (call $config_get (call $long)))"] {
            let long = "(func $long (result i64) (call $text (i32.const 64) (i32.const 65000)))";
            let longer = "(func $long (result i64) (call $alloc (i64.const 65537)))";
            for (name, refused) in [(long, false), (longer, ours)] {
                let answer =
                    answers(&pool, with_functions(name, &format!("{body} i32.const 0")), &[b""]).await.remove(0);
                let said = answer.err().map(|(_, text)| text);
                assert_eq!(said.is_some_and(|text| text.contains("over 65536 bytes")), refused, "{engine:?} {body}");
            }
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn a_plugin_is_linked_with_at_most_eight_modules() {
    let one = || Source::bytes(wasm(r#"(module (memory 1) (func (export "one") (result i32) (i32.const 0)))"#));
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    for (engine, ours) in BOTH {
        let pool = pool(engine);
        for names in [&names[..8], &names] {
            let import = |name: &&str| format!(r#"(import "{name}" "one" (func ${name} (result i32)))"#);
            let imports: String = names.iter().map(import).collect();
            let text = wasm(&format!(r#"(module {imports} (memory 1) (func (export "run") (result i32) (call $h)))"#));
            let spec = names.iter().fold(Spec::new(Source::bytes(text)), |spec, name| spec.link(*name, one()));
            let answer = answers(&pool, spec, &[b""]).await.remove(0);
            match answer {
                Ok(_) => assert!(names.len() == 8 || !ours),
                Err((kind, text)) => {
                    assert!(ours && names.len() > 8 && kind == "invalid_request", "{text}");
                    assert!(text.contains("at most 8 modules"), "{text}");
                }
            }
        }
        pool.close().await;
    }
}

/// Its thread is the only one. On extism it has one of its own, and sleeps beyond its deadline.
#[tokio::test]
async fn a_guest_that_sleeps_blocks_nobody_and_ends_at_its_deadline() {
    let sleeps = format!(
        r#"(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32))) {IMPORTS}
            (func (export "run") (result i32)
                (i64.store (i32.const 1024) (i64.const 0)) (i64.store (i32.const 1032) (i64.const 0))
                (i32.store (i32.const 1040) (i32.const 1))
                (i64.store (i32.const 1048) (i64.const 3600000000000))
                (call $poll (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 4096))))"#
    );
    let pool = pool(EngineKind::Direct);
    let sleeps = Spec::new(Source::bytes(wasm(&sleeps))).exec_timeout(Duration::from_millis(300));
    let sleeper = pool.evaluator("sleeper", sleeps).unwrap();
    let neighbour = pool.evaluator("neighbour", env("(call $echo) i32.const 0")).unwrap();
    let asleep = sleeper.evaluate("");
    let served = async {
        for _ in 0..50 {
            assert_eq!(neighbour.evaluate("x").await.unwrap().bytes(), "x");
        }
    };
    let (slept, ()) = tokio::join!(asleep, served);
    assert_eq!(slept.unwrap_err().kind(), "exec_timeout");
    pool.close().await;
}

#[tokio::test]
async fn files_arguments_and_environment_are_not_there() {
    let wasi = |name: &str, ty: &str, body: &str| {
        let import = format!(r#"(import "wasi_snapshot_preview1" "{name}" (func $f {ty}))"#);
        let text = format!(r#"(module {import} {IMPORTS} (func (export "run") (result i32) {body}))"#);
        Spec::new(Source::bytes(wasm(&text)))
    };
    let open = "(drop (call $f (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 0) (i64.const 0) (i64.const 0)
        (i32.const 0) (i32.const 64)))";
    let open = open.replacen("(drop ", "", 1);
    let opens =
        wasi("path_open", "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)", open.strip_suffix(')').unwrap());
    let sizes = "(if (call $f (i32.const 64) (i32.const 68)) (then unreachable)) (i32.load (i32.const 64))";
    let reads = "(i32.store (i32.const 64) (i32.const 128)) (i32.store (i32.const 68) (i32.const 100))
        (if (call $f (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 72)) (then unreachable)) (i32.load (i32.const 72))";
    for engine in ENGINES {
        let pool = pool(engine);
        let refused = answers(&pool, opens.clone(), &[b""]).await.remove(0);
        // EBADF: descriptor 3, the first that could be preopened, does not exist.
        assert!(refused.as_ref().is_err_and(|(_, text)| text.contains("it returned 8")), "{engine:?}: {refused:?}");
        for (name, ty, body) in [
            ("args_sizes_get", "(param i32 i32) (result i32)", sizes),
            ("environ_sizes_get", "(param i32 i32) (result i32)", sizes),
            ("fd_read", "(param i32 i32 i32 i32) (result i32)", reads),
        ] {
            let none = answers(&pool, wasi(name, ty, body), &[b""]).await.remove(0);
            assert_eq!(none, Ok(vec![]), "{engine:?} {name}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn http_requests_have_a_bounded_size_and_a_bounded_number_of_headers() {
    let asks = with_functions(
        "(func $copy (result i64) (call $echo) (call $output_offset))",
        "(call $block (call $http (call $copy) (i64.const 0))) i32.const 0",
    )
    .allowed_hosts(["example.org"]);
    let headers: Vec<_> = (0..101).map(|at| format!(r#""x-{at}":"1""#)).collect();
    let pool = pool(EngineKind::Direct);
    let (long, many) = ("x".repeat(65_536), headers.join(","));
    let largest = r#"{"url":"http://not.org/"}"#.replace("/\"", &format!("/{}\"", &long[25..]));
    assert_eq!(largest.len(), 65_536);
    for (request, ends_as, said) in [
        (format!(r#"{{"url":"http://example.org/{long}"}}"#), "guest_error", "is over 65536 bytes"),
        (largest, "guest_trap", "is not allowed"),
        (format!(r#"{{"url":"http://example.org/","headers":{{{many}}}}}"#), "guest_trap", "more than 100 headers"),
    ] {
        let (kind, text) = answers(&pool, asks.clone(), &[request.as_bytes()]).await.remove(0).unwrap_err();
        assert!(kind == ends_as && text.contains(said), "{kind} {text}");
    }
    pool.close().await;
}

/// In a process of its own: a subscriber changes the level that other tests' plugins are told.
#[test]
fn log_lines_of_an_evaluation_are_bounded_in_number_and_length() {
    if alone("conformance::differences::log_lines_of_an_evaluation_are_bounded_in_number_and_length") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(log_lines_are_bounded());
    }
}

async fn log_lines_are_bounded() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // On this thread, which is the one that guests of `direct` run on.
    let _guard = tracing::subscriber::set_default(subscriber);
    let logs = with_functions(
        "(func $long (result i64) (call $text (i32.const 0) (i32.const 20000)))",
        "(local $n i32) (memory.fill (i32.const 0) (i32.const 122) (i32.const 20000))
        (loop $each (call $log_warn (call $long))
            (br_if $each (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 150)))) i32.const 0",
    );
    let pool = pool(EngineKind::Direct);
    for calls in 1..3 {
        answers(&pool, logs.clone(), &[b""]).await.remove(0).unwrap();
        let written = lines.text();
        let written: Vec<_> = written.lines().filter(|line| line.contains("evalpool::plugin")).collect();
        assert_eq!(written.len(), 100 * calls);
        assert!(written[0].matches('z').count() == 4096 && written[98].matches('z').count() == 4096);
        assert!(written[99].contains("the rest is not shown"));
    }
    pool.close().await;
}
