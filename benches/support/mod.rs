//! What several benches need.

pub(crate) mod nothing;

use std::sync::Arc;

use evalpool::{
    Digest, Init, Settings,
    engine::{
        CompilePriority, CompileRequest, CompiledPlugin, Engine, InstanceLimits, MemoryAccount, Permit, TenantId,
        direct::DirectEngine,
    },
};
use tokio::runtime::Runtime;

/// What the default settings allow an instance.
pub(crate) fn limits() -> InstanceLimits {
    let limits = Settings::default().limits;
    InstanceLimits {
        memory: limits.memory,
        table_elements: limits.table_elements,
        output_size: limits.output_size,
        exec_timeout: limits.exec_timeout,
        build_timeout: limits.build_timeout,
        fuel: None,
    }
}

/// A plugin on the `direct` engine without a pool: nothing counts, leases or times its instances.
pub(crate) fn direct_without_pool(runtime: &Runtime, wasm: Vec<u8>) -> Arc<dyn CompiledPlugin> {
    let settings = Settings::default();
    let engine = DirectEngine::new(&settings.pool, &settings.limits, &settings.engine).unwrap();
    let request = CompileRequest {
        tenant: TenantId::default(),
        evaluator: "bench".into(),
        labels: None,
        log: None,
        digest: Digest::of(&wasm),
        wasm: wasm.into(),
        linked: Arc::new([]),
        wasi: false,
        trusted: false,
        config: Arc::default(),
        variables: None,
        init: Init::Each,
        init_refresh: None,
        allowed_hosts: Arc::new([]),
        host_functions: Arc::new([]),
        limits: limits(),
        initial_memory: 0,
        wide: false,
        priority: CompilePriority::Normal,
        memory: MemoryAccount::unbounded(),
        permit: Permit::new(()),
    };
    runtime.block_on(engine.compile(request)).unwrap().into()
}
