//! Large code on the `direct` engine is in memory once, and gives way when nobody runs it.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};

use evalpool::{PoolBuilder, Source, Spec, config::EngineKind};

use super::MIB;
use crate::{
    service::{Server, eventually},
    support::{self, settings, wasm},
};

/// A plugin whose memory begins with this many MiB of `x`, of which `run` reads all and answers the last byte.
fn large(mib: usize, number: usize) -> Vec<u8> {
    let (bytes, data) = (mib << 20, "x".repeat(mib << 20));
    wasm(&format!(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (memory {}) (data (i32.const 0) "{data}")
            (global (export "number") i32 (i32.const {number}))
            (func (export "run") (local $at i32) (local $last i32) (local $to i64)
                (loop $next
                    (local.set $last (i32.load8_u (local.get $at)))
                    (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 64))) (i32.const {bytes}))))
                (local.set $to (call $alloc (i64.const 1)))
                (call $store (local.get $to) (local.get $last))
                (call $output (local.get $to) (i64.const 1))))"#,
        mib * 16
    ))
}

/// Files without a name that a server has, and the bytes in all of them.
fn unnamed(server: &Server) -> (usize, u64) {
    let open = fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().map(|file| file.unwrap().path());
    let unnamed = open.filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:")));
    let files: Vec<_> = unnamed.filter_map(|path| fs::metadata(path).ok()).collect();
    let distinct: BTreeMap<u64, u64> = files.iter().map(|file| (file.ino(), file.len())).collect();
    assert_eq!(distinct.len(), files.len(), "one descriptor for each");
    (files.len(), distinct.values().sum())
}

/// Bytes of a server that lie in no file.
fn anonymous(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn code_that_runs_and_is_kept_and_what_its_memory_begins_with_are_the_same_bytes() {
    let server = Server::start(&[("POOL_MEMORY", "256MiB")]);
    assert_eq!(server.put("warm", &large(1, 0)).status, 201);
    let (before, (files, bytes)) = (anonymous(&server), unnamed(&server));
    assert_eq!(server.put("large", &large(16, 1)).status, 201);
    assert_eq!(server.post("large", b"").text(), "x");
    let code = |kind| server.metric("evalpool_memory_bytes", kind);
    let more = || unnamed(&server).1 - bytes;
    assert_eq!(unnamed(&server).0, files + 1);
    assert!((16 * MIB..18 * MIB).contains(&more()), "{}", more());
    assert!((bytes + more()..bytes + more() + MIB).contains(&code("code")), "it is charged once: {}", code("code"));
    eventually("there is no copy of it", || anonymous(&server) < before + 8 * MIB);

    assert_eq!(server.request("DELETE", "/v1/evaluators/large/runtime", &[], b"").status, 204);
    eventually("it is kept, and charged once", || code("cache") >= 16 * MIB && code("code") < 8 * MIB);
    assert_eq!(unnamed(&server).0, files + 1);
    assert_eq!(server.post("large", b"").text(), "x");
    assert!(code("cache") < MIB, "it runs again");
    assert_eq!(unnamed(&server).0, files + 1);
}

#[test]
fn code_that_is_not_kept_leaves_no_file_and_no_mapping() {
    let server = Server::start(&[("ENGINE_CODE_CACHE", "off")]);
    let path = "/v1/evaluators/large";
    let round = |number| {
        assert_eq!(server.put("large", &large(2, number)).status, 201);
        assert_eq!(server.post("large", b"").text(), "x");
        let held = unnamed(&server).0;
        assert_eq!(server.request("DELETE", path, &[], b"").status, 204);
        held
    };
    // Starts what is kept: a worker, threads.
    round(0);
    eventually("it is gone", || unnamed(&server) == (0, 0));
    let before = server.held();
    for number in 1..5 {
        assert_eq!(round(number), 1);
    }
    eventually("all is given back", || {
        let held = server.held();
        // The connection of the request before may not have ended yet.
        held.open_files <= before.open_files && held.executable_mappings == before.executable_mappings
    });
}

#[tokio::test]
async fn code_that_nobody_runs_gives_way_before_any_runtime_does() {
    let mut settings = settings(EngineKind::Direct);
    settings.pool.memory = 26 * MIB;
    let pool = PoolBuilder::from(settings).build().unwrap();
    let evaluators: Vec<_> =
        (0..8).map(|n| pool.register(&n.to_string(), Spec::new(Source::bytes(large(3, n)))).unwrap()).collect();
    let call = async |n: usize| assert_eq!(evaluators[n].evaluate("").await.unwrap().bytes()[..], *b"x");
    for (n, evaluator) in evaluators.iter().enumerate().take(2) {
        call(n).await;
        evaluator.unload().await;
    }
    let (each, kept) = (3 * MIB, pool.memory().cache);
    assert!((2 * each..3 * each).contains(&kept), "{:?}", pool.memory());
    // Two live beside them, with room for an instance.
    call(2).await;
    call(3).await;
    assert_eq!(pool.memory().cache, kept);
    // Eight do not fit. Those that are not live go first, the elder before the other.
    for n in 4..8 {
        call(n).await;
    }
    support::eventually("code that nobody runs has gone", || pool.memory().cache < each * 3 / 2).await;
    assert_eq!(pool.runtimes(), 6, "no runtime was closed for it: {:?}", pool.memory());
    assert!(pool.memory().code + pool.memory().instances + pool.memory().cache <= 26 * MIB);
    // Then runtimes go, and with them their code, although it could be kept.
    for n in (0..8).chain(0..8) {
        call(n).await;
    }
    assert!(pool.runtimes() > 5, "{:?}", pool.memory());
    pool.close().await;
    assert_eq!(pool.memory().code, 0);
}
