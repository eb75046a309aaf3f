//! Fixtures and the spy: what more than one module of these tests needs.

pub(crate) mod log;
pub(crate) mod measured;
pub(crate) mod process;
#[cfg(feature = "service")]
pub(crate) mod spans;
pub(crate) mod spy;

use std::{future::Future, time::Duration};

use evalpool::{
    PoolBuilder, Settings,
    config::{CompileWorkers, EngineKind, LimitSettings},
};

/// The built-in plugin: `{"name":"Ada"}` → `{"greeting":"Hello, Ada!"}`.
pub(crate) const GREET: &[u8] = include_bytes!("../../../src/service/greet/greet.wasm");
/// Written in C: `upper`, `count_vowels`, `fail`, `counter`.
pub(crate) const TEXT: &[u8] = include_bytes!("../../plugins/c/text.wasm");
/// Written in C, for WASI: `say`, `crash`, `leave`, `hang`, `chatter`.
pub(crate) const CRASH: &[u8] = include_bytes!("../../plugins/c/crash.wasm");
/// Written in `AssemblyScript` with the official PDK: `word_count`, `remember`, `setting`.
pub(crate) const WORDS: &[u8] = include_bytes!("../../plugins/assemblyscript/words.wasm");
/// The same, importing an `abort` that no host provides.
pub(crate) const NO_ABORT: &[u8] = include_bytes!("../../plugins/assemblyscript/no_abort.wasm");
/// Written in Rust with the official PDK: `transform`, `echo`, `log_it`.
pub(crate) const TOTALS: &[u8] = include_bytes!("../../plugins/rust/totals.wasm");
/// Written in Rust with the official PDK: `call_host`, which calls `host_upper` of the host.
pub(crate) const CALL_HOST: &[u8] = include_bytes!("../../plugins/rust-host/call_host.wasm");

/// Written in Rust with the official PDK, for WASI: `last`, which panics without an input.
pub(crate) const PANICS: &[u8] = include_bytes!("../../plugins/rust-panic/panics.wasm");
/// Written as text: `mirror`, which takes requests and answers 203 with what it was given.
pub(crate) const MIRROR: &[u8] = include_bytes!("../../plugins/wat/mirror.wasm");
/// Writes `starting` to WASI's standard error while it is initialised, and traps.
pub(crate) const START_TRAPS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\08\00\00\00\09\00\00\00starting\0a")
    (func $begin (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 100))) unreachable)
    (start $begin)
    (func (export "run")))"#;

/// A WebAssembly binary from its text.
pub(crate) fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("a test's module is well formed")
}

/// Every engine there is.
pub(crate) const ENGINES: [EngineKind; 2] = [EngineKind::Extism, EngineKind::Direct];

/// The default limits with deadlines that no machine is too slow for: over ten times what anything takes on a busy one.
/// What is to meet a deadline has a shorter one of its own.
pub(crate) fn patient() -> LimitSettings {
    let long = Duration::from_mins(2);
    LimitSettings { exec_timeout: long, build_timeout: long, wait_timeout: long, ..LimitSettings::default() }
}

/// The default settings on this engine, but [patient]. What `extism` runs is trusted, since it takes nothing else.
pub(crate) fn settings(engine: EngineKind) -> Settings {
    let mut settings = Settings { limits: patient(), ..Settings::default() };
    settings.engine.kind = engine;
    settings.engine.compile_workers = compile_workers();
    settings.engine.trusted = engine == EngineKind::Extism;
    settings
}

/// Compile workers of the program: this process is a test's, which cannot become one.
pub(crate) fn compile_workers() -> CompileWorkers {
    option_env!("CARGO_BIN_EXE_evalpool")
        .map_or(CompileWorkers::Auto, |program| CompileWorkers::Program(program.into()))
}

/// A builder with those.
pub(crate) fn builder(engine: EngineKind) -> PoolBuilder {
    PoolBuilder::from(settings(engine))
}

/// Waits until `condition` holds, looking again each millisecond; panics with `what` after a minute, which is far longer
/// than anything takes. A minute of the system's: where tokio's time is paused, other threads still need theirs.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_mins(1), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A runtime with several workers, for tests whose promises are about threads.
pub(crate) fn on_threads<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("the system gives a test its threads")
        .block_on(future)
}

/// Makes each promise, an async function that takes an engine's kind, a test for each engine.
macro_rules! on_each_engine {
    ($($promise:ident),* $(,)?) => {
        mod on_extism {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(evalpool::config::EngineKind::Extism).await;
            })*
        }
        mod on_direct {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(evalpool::config::EngineKind::Direct).await;
            })*
        }
    };
}
