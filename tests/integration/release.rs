//! What a permit stands for is gone before the permit: bounds count what exists. On the real engines, without a pool.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use evalpool::{
    Digest, Error, HostFunction, Init, Settings,
    config::EngineKind,
    engine::{
        CallRequest, CompilePriority, CompileRequest, CompiledPlugin, Engine, Instance, InstanceLimits, MemoryAccount,
        Permit, TenantId, direct::DirectEngine, extism::ExtismEngine,
    },
};
use tokio::time::Instant;

use crate::support::{ENGINES, eventually, settings, wasm};

const GUEST: &str = r#"(module
    (import "extism:host/env" "input_length" (func $length (result i64)))
    (import "extism:host/user" "held" (func (param i64) (result i64)))
    (memory (export "memory") 1)
    (func $start) (start $start)
    (func (export "run") (if (i64.ne (call $length) (i64.const 0)) (then unreachable))))"#;

pub(crate) fn engine(kind: EngineKind) -> Arc<dyn Engine> {
    let Settings { pool, limits, engine, .. } = settings(kind);
    match kind {
        EngineKind::Direct => Arc::new(DirectEngine::new(&pool, &limits, &engine).unwrap()),
        _ => Arc::new(ExtismEngine::new().unwrap()),
    }
}

/// Looks, when it is dropped, whether what it stands for is gone.
struct Witness {
    is_gone: Box<dyn Fn() -> bool + Send + Sync>,
    seen: Arc<Mutex<Vec<bool>>>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.seen.lock().unwrap().push((self.is_gone)());
    }
}

/// What witnesses saw.
#[derive(Default)]
struct Seen(Arc<Mutex<Vec<bool>>>);

impl Seen {
    fn permit(&self, is_gone: impl Fn() -> bool + Send + Sync + 'static) -> Permit {
        Permit::new(Witness { is_gone: Box::new(is_gone), seen: self.0.clone() })
    }

    async fn assert_gone(&self, times: usize, what: &str) {
        eventually("the permits are released", || self.0.lock().unwrap().len() == times).await;
        assert_eq!(*self.0.lock().unwrap(), vec![true; times], "{what}");
    }
}

/// How to compile a plugin that nobody knows, as one among many.
pub(crate) fn request(text: &str) -> CompileRequest {
    let (wasm, limits) = (wasm(text), settings(EngineKind::Direct).limits);
    CompileRequest {
        tenant: TenantId::default(),
        evaluator: "released".into(),
        labels: None,
        log: None,
        digest: Digest::of(&wasm),
        wasm: wasm.into(),
        linked: Arc::new([]),
        wasi: false,
        trusted: true,
        config: Arc::default(),
        variables: None,
        init: Init::Each,
        init_refresh: None,
        allowed_hosts: Arc::new([]),
        host_functions: Arc::new([]),
        limits: InstanceLimits {
            memory: limits.memory,
            table_elements: limits.table_elements,
            output_size: limits.output_size,
            exec_timeout: limits.exec_timeout,
            build_timeout: limits.build_timeout,
            fuel: None,
        },
        initial_memory: 0,
        wide: false,
        priority: CompilePriority::Low,
        memory: MemoryAccount::unbounded(),
        permit: Permit::new(()),
    }
}

/// A plugin whose host function holds something, and whether that is gone.
async fn compile(engine: &dyn Engine, text: &str, seen: &Seen) -> Result<Box<dyn CompiledPlugin>, Error> {
    let held = Arc::new(());
    let weak = Arc::downgrade(&held);
    let function = HostFunction::bytes("held", move |_| {
        let _ = &held;
        Ok(Vec::new())
    });
    let permit = seen.permit(move || weak.upgrade().is_none());
    engine.compile(CompileRequest { host_functions: Arc::new([function]), permit, ..request(text) }).await
}

async fn call(instance: &mut dyn Instance, input: &'static [u8]) -> Result<(), Error> {
    let deadline = Instant::now() + std::time::Duration::from_mins(1);
    let request = CallRequest { entry_point: "run", input: input.into(), context: None, deadline };
    instance.call(request).await.map(drop)
}

#[tokio::test]
async fn a_plugins_permit_goes_after_all_that_was_made_of_it() {
    for kind in ENGINES {
        let engine = engine(kind);
        let plugins = Seen::default();
        let compiled = compile(&*engine, GUEST, &plugins).await.unwrap();
        let mut instance = compiled.instantiate(Permit::new(())).await.unwrap();
        call(&mut *instance, b"").await.unwrap();
        // The plugin first, as when a runtime closes while a guest still runs.
        drop(compiled);
        call(&mut *instance, b"").await.unwrap();
        assert!(plugins.0.lock().unwrap().is_empty(), "{kind:?}");
        drop(instance);
        plugins.assert_gone(1, "a plugin with an instance").await;
        drop(compile(&*engine, GUEST, &plugins).await.unwrap());
        plugins.assert_gone(2, "a plugin alone").await;
        let text = GUEST.replace("\"held\"", "\"nobody\"");
        if let Ok(compiled) = compile(&*engine, &text, &plugins).await {
            compiled.instantiate(Permit::new(())).await.err().unwrap();
        }
        plugins.assert_gone(3, "one that cannot be linked").await;
    }
}

#[tokio::test]
async fn an_instances_permit_goes_after_its_slots() {
    let engine = engine(EngineKind::Direct);
    let instances = Seen::default();
    let permit = || {
        let engine = engine.clone();
        instances.permit(move || engine.slots().unwrap().live.instances == 0)
    };
    let compiled = compile(&*engine, GUEST, &Seen::default()).await.unwrap();
    let mut instance = compiled.instantiate(permit()).await.unwrap();
    call(&mut *instance, b"").await.unwrap();
    drop(instance);
    instances.assert_gone(1, "one that is dropped").await;
    let mut instance = compiled.instantiate(permit()).await.unwrap();
    call(&mut *instance, b"trap").await.unwrap_err();
    assert!(!instance.is_sound());
    instances.assert_gone(2, "one that trapped").await;
    let mut instance = compiled.instantiate(permit()).await.unwrap();
    drop(call(&mut *instance, b"").await);
    drop(compiled);
    drop(instance);
    instances.assert_gone(3, "the last of its plugin").await;
    // One whose start fails, and one that is given up while it starts.
    let traps = GUEST.replace("(func $start)", "(func $start unreachable)");
    let compiled = compile(&*engine, &traps, &Seen::default()).await.unwrap();
    compiled.instantiate(permit()).await.err().unwrap();
    instances.assert_gone(4, "one whose start traps").await;
    let spins = GUEST.replace("(func $start)", "(func $start (loop br 0))");
    let compiled = compile(&*engine, &spins, &Seen::default()).await.unwrap();
    let left = Arc::new(AtomicBool::new(false));
    let making = tokio::spawn({
        let (permit, left) = (permit(), left.clone());
        async move {
            drop(compiled.instantiate(permit).await);
            left.store(true, Ordering::SeqCst);
        }
    });
    eventually("it starts", || engine.slots().unwrap().live.stacks > 0).await;
    making.abort();
    assert!(making.await.unwrap_err().is_cancelled() && !left.load(Ordering::SeqCst));
    instances.assert_gone(5, "one that was given up while it started").await;
}
