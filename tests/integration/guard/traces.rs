//! Failing builds leave nothing behind in the process, on each real engine.

use std::time::Duration;

use evalpool::{PoolBuilder, Source, Spec, config::EngineKind};
use tokio::runtime::Handle;

use crate::support::{
    ENGINES, GREET, eventually,
    process::{alone, forgetful_threads, settled},
    settings, wasm,
};

/// Two hundred builds in a row of one bad plugin on each real engine: executable mappings and threads are where they
/// were.
fn leaves_no_trace(name: &str, spec: impl Fn() -> Spec, kind: &str) {
    // Other tests of this binary compile and spawn at the same time, so the figures are taken in a process of its own.
    if !alone(&format!("guard::traces::{name}")) {
        return;
    }
    let runtime = forgetful_threads();
    for engine in ENGINES {
        runtime.block_on(traceless(engine, spec(), kind));
    }
}

async fn traceless(engine: EngineKind, spec: Spec, kind: &str) {
    let mut settings = settings(engine);
    settings.pool.capacity = 2;
    settings.pool.negative_ttl = Duration::ZERO;
    let pool = PoolBuilder::from(settings).background(Handle::current()).build().unwrap();
    let build = async || {
        let error = pool.evaluator("bad", spec.clone()).unwrap().evaluate("").await.unwrap_err();
        assert_eq!(error.kind(), kind);
    };
    // The first builds start what the engine starts once for the process; its idle threads then go.
    for _ in 0..5 {
        build().await;
    }
    let at_rest = async || {
        eventually("the builds are closed", || pool.runtimes() == 0).await;
        settled().await
    };
    let before = at_rest().await;
    for _ in 0..200 {
        build().await;
    }
    let after = at_rest().await;
    println!("{engine:?}: (executable mappings, threads): {before:?} before, {after:?} after");
    assert_eq!(before, after);
}

#[test]
fn a_wrong_entry_point_two_hundred_times_leaves_no_trace() {
    let spec = || Spec::new(Source::bytes(GREET)).entry_point("great");
    leaves_no_trace("a_wrong_entry_point_two_hundred_times_leaves_no_trace", spec, "entry_point_missing");
}

#[test]
fn a_data_segment_out_of_bounds_two_hundred_times_leaves_no_trace() {
    let text = r#"(module (memory 1) (data (i32.const 65536) "x") (func (export "run")))"#;
    let spec = || Spec::new(Source::bytes(wasm(text)));
    leaves_no_trace("a_data_segment_out_of_bounds_two_hundred_times_leaves_no_trace", spec, "invalid_plugin");
}

#[test]
fn a_start_that_traps_two_hundred_times_leaves_no_trace() {
    let text = r#"(module (func $start unreachable) (start $start) (func (export "run")))"#;
    let spec = || Spec::new(Source::bytes(wasm(text)));
    leaves_no_trace("a_start_that_traps_two_hundred_times_leaves_no_trace", spec, "invalid_plugin");
}
