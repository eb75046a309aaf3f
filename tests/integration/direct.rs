//! What the `direct` engine says of itself and of its plugins, without a pool.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use evalpool::{
    Error, HostFunction, Init, Settings,
    config::{CompileWorkers, EngineKind},
    engine::{
        CallRequest, CompileRequest, CompiledPlugin, Engine, InitState, Instance, LogSink, Permit, SlotCounts, Slots,
        direct::{Compiled, DirectEngine},
    },
};
use tokio::time::{Instant, advance, pause, resume};

use crate::{
    conformance::IMPORTS,
    release::{engine, request},
    support::settings,
};

async fn instance(plugin: &dyn CompiledPlugin) -> Result<Box<dyn Instance>, Error> {
    plugin.instantiate(Permit::new(())).await
}

/// Calls it, and gives how long its output is.
async fn call(instance: &mut dyn Instance) -> Result<usize, Error> {
    let deadline = Instant::now() + Duration::from_mins(1);
    let call = CallRequest { entry_point: "run", input: (&b""[..]).into(), context: None, deadline };
    instance.call(call).await.map(|output| output.len())
}

#[tokio::test]
async fn an_entry_point_takes_nothing_and_gives_a_number_or_none() {
    let text = r#"(module (memory (export "memory") 1) (global (export "global") i32 (i32.const 0))
        (func (export "nothing")) (func (export "number") (result i32) i32.const 0)
        (func (export "long") (result i64) i64.const 0) (func (export "takes") (param i32))
        (func (export "two") (result i32 i32) i32.const 0 i32.const 0))"#;
    let plugin = engine(EngineKind::Direct).compile(request(text)).await.unwrap();
    let all = ["nothing", "number", "long", "takes", "two", "global", "memory", "missing"];
    let entry_points: Vec<_> = all.into_iter().filter(|name| plugin.has_entry_point(name)).collect();
    assert_eq!(entry_points, ["nothing", "number"]);
}

#[tokio::test]
async fn compiles_can_be_ended_where_they_are_in_workers() {
    let Settings { pool, limits, mut engine, .. } = settings(EngineKind::Direct);
    for (workers, ends) in [(CompileWorkers::Off, false), (CompileWorkers::Program("/nothing/here".into()), true)] {
        engine.compile_workers = workers;
        let engine = DirectEngine::new(&pool, &limits, &engine).unwrap();
        assert_eq!((engine.interrupts_compiles(), engine.compile_workers().is_some()), (ends, ends));
        assert!(engine.fair_share().is_some() && engine.shares_code() && engine.keeps_variables());
        assert!(engine.interrupts_initialisers() && engine.initialises_once() && engine.instances_are_cheap());
    }
}

#[tokio::test]
async fn slots_are_counted_while_an_instance_has_them_and_while_they_are_kept() {
    let engine = engine(EngineKind::Direct);
    assert_eq!(engine.slots(), Some(Slots::default()));
    let (seen, within) = (Arc::new(Mutex::new(Slots::default())), Arc::downgrade(&engine));
    let look = HostFunction::bytes("look", {
        let seen = seen.clone();
        move |_| {
            *seen.lock().unwrap() = within.upgrade().and_then(|engine| engine.slots()).unwrap();
            Ok(vec![])
        }
    });
    let text = r#"(module (import "extism:host/user" "look" (func $look (param i64) (result i64)))
        (memory (export "memory") 1) (table 1 funcref) (func (export "run") (drop (call $look (i64.const 0)))))"#;
    let plain = CompileRequest { host_functions: Arc::new([look.clone()]), ..request(text) };
    let stands_in = HostFunction::bytes("load_u8", |bytes| Ok(bytes.to_vec())).in_module("extism:host/env");
    let beside = CompileRequest { host_functions: Arc::new([look, stands_in]), ..request(text) };
    for (request, has_kernel) in [(plain, true), (beside, false)] {
        let plugin = engine.compile(request).await.unwrap();
        assert_eq!(plugin.as_any().downcast_ref::<Compiled>().unwrap().has_kernel(), has_kernel);
        assert_eq!(engine.slots().unwrap().kernels_beside, u64::from(!has_kernel));
        let mut made = Vec::new();
        for _ in 0..3 {
            made.push(instance(&*plugin).await.unwrap());
        }
        let instances = if has_kernel { 3 } else { 6 };
        let live = SlotCounts { instances, memories: 6, tables: 3, stacks: 0 };
        assert_eq!(engine.slots().unwrap().live, live);
        call(&mut *made[0]).await.unwrap();
        assert_eq!(seen.lock().unwrap().live, SlotCounts { stacks: 1, ..live });
        drop(made);
        let Slots { live, warm, kept, .. } = engine.slots().unwrap();
        let memories = if has_kernel { 6 } else { 12 };
        assert_eq!(live, SlotCounts::default());
        assert_eq!(warm, SlotCounts { instances: 0, memories, tables: 3, stacks: 1 });
        assert!((1..=1 << 20).contains(&kept), "{kept}");
    }
}

#[tokio::test]
async fn initialisers_that_fail_at_first_run_once_and_end_the_build() {
    let lines = Arc::new(AtomicUsize::new(0));
    let counts = lines.clone();
    let log = LogSink::new(move |_, _| {
        counts.fetch_add(1, Ordering::Relaxed);
    });
    let engine = engine(EngineKind::Direct);
    for (fails, logged) in [("unreachable", 1), ("", 2)] {
        let text = format!(
            r#"(module {IMPORTS}
                (func (export "_initialize") (call $log_trace (call $alloc (i64.const 1)))
                    ;; Whoever takes lines takes all of them, so that no plugin leaves any out.
                    (if (call $log_level) (then unreachable)) {fails})
                (func (export "run")))"#
        );
        let request = CompileRequest { init: Init::Once, log: Some(log.clone()), ..request(&text) };
        let plugin = engine.compile(request).await.unwrap();
        let failed = instance(&*plugin).await.err();
        assert_eq!(matches!(failed, Some(Error::InvalidPlugin { .. })), !fails.is_empty(), "{failed:?}");
        assert_eq!(lines.load(Ordering::Relaxed), logged);
    }
}

#[tokio::test]
async fn an_output_may_have_as_many_bytes_as_are_allowed() {
    let engine = engine(EngineKind::Direct);
    for (length, fits) in [(7, true), (8, true), (9, false)] {
        let text = format!(
            r#"(module {IMPORTS} (func (export "run") (call $output_set (call $alloc (i64.const 16)) (i64.const {length}))))"#
        );
        let mut request = request(&text);
        request.limits.output_size = 8;
        let plugin = engine.compile(request).await.unwrap();
        let ended = call(&mut *instance(&*plugin).await.unwrap()).await;
        assert_eq!(ended.as_ref().ok().copied(), fits.then_some(length));
        assert!(fits || matches!(ended, Err(Error::OutputTooLarge { .. })), "{ended:?}");
    }
}

#[tokio::test]
async fn a_name_may_have_64_kib() {
    let engine = engine(EngineKind::Direct);
    for (length, fits) in [(65_536, true), (65_537, false)] {
        let text = format!(
            r#"(module {IMPORTS} (func (export "run") (drop (memory.grow (i32.const 1)))
                (memory.fill (i32.const 0) (i32.const 120) (i32.const {length}))
                (call $var_set (call $text (i32.const 0) (i32.const {length})) (call $alloc (i64.const 1)))))"#
        );
        let plugin = engine.compile(request(&text)).await.unwrap();
        let failed = call(&mut *instance(&*plugin).await.unwrap()).await.err().map(|error| error.to_string());
        assert_eq!(failed.is_none(), fits, "{failed:?}");
    }
}

/// Each second time its initialisers sleep for an hour.
const SLEEPS: &str = r#"(module
    (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_initialize")
        (drop (call $random (i32.const 0) (i32.const 8)))
        (if (i32.and (i32.load (i32.const 0)) (i32.const 1)) (then
            (i32.store (i32.const 1016) (i32.const 1)) (i64.store (i32.const 1024) (i64.const 3600000000000))
            (drop (call $poll (i32.const 1000) (i32.const 2000) (i32.const 1) (i32.const 3000))))))
    (func (export "run")))"#;

#[tokio::test]
async fn what_is_read_anew_has_half_the_time_and_the_rest_is_for_an_instance_of_what_there_is() {
    let soon = Some(Duration::from_millis(1));
    let mut request = CompileRequest { wasi: true, init: Init::Once, init_refresh: soon, ..request(SLEEPS) };
    request.limits.build_timeout = Duration::from_secs(4);
    let half = Duration::from_secs(2);
    let mut took = Duration::ZERO;
    // Until it sleeps when it is read anew.
    for _ in 0..60 {
        let plugin = engine(EngineKind::Direct).compile(request.clone()).await.unwrap();
        while plugin.init_state() != InitState::Once {
            // If it sleeps, there is no instance.
            let _ = instance(&*plugin).await;
            plugin.snapshot().await.unwrap();
        }
        let _waits = plugin.read_anew().unwrap();
        pause();
        advance(Duration::from_hours(1)).await;
        let began = Instant::now();
        instance(&*plugin).await.unwrap();
        took = began.elapsed();
        resume();
        if !took.is_zero() {
            break;
        }
    }
    assert!(took >= half && took < half + Duration::from_millis(10), "{took:?}");
}
