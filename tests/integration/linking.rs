//! What a plugin is linked with: Extism's kernel, and other modules.

use evalpool::{
    EvaluatorPool, HostFunction, Source, Spec,
    config::EngineKind,
    engine::{Val, ValType, direct::Compiled},
};

use crate::{
    conformance::IMPORTS,
    support::{CALL_HOST, CRASH, ENGINES, GREET, MIRROR, PANICS, TEXT, TOTALS, WORDS, builder, settings, wasm},
};

/// Fixtures, each with an entry point.
const FIXTURES: [(&str, &[u8]); 8] = [
    ("greet", GREET),
    ("upper", TEXT),
    ("say", CRASH),
    ("word_count", WORDS),
    ("echo", TOTALS),
    ("call_host", CALL_HOST),
    ("last", PANICS),
    ("mirror", MIRROR),
];

#[tokio::test]
async fn every_fixture_has_the_kernel_in_its_own_module_unless_it_is_linked_with_others() {
    let pool = builder(EngineKind::Direct).build().unwrap();
    let beside = || pool.slots().unwrap().kernels_beside;
    for (count, (entry_point, plugin)) in (0..).zip(FIXTURES) {
        let host = HostFunction::bytes("host_upper", |bytes| Ok(bytes.to_ascii_uppercase()));
        // In a module of its own: it stands in for nothing.
        let namesake = HostFunction::bytes("load_u8", |bytes| Ok(bytes.to_vec()));
        let alone = Spec::bytes(plugin.to_vec()).host_function(host).host_function(namesake).entry_point(entry_point);
        let linked = alone.clone().link("nothing", Source::bytes(wasm("(module)")));
        for (spec, expected) in [(alone, true), (linked, false)] {
            let evaluator = pool.evaluator(entry_point, spec).unwrap();
            let executable = evaluator.executable().await.unwrap();
            let has_kernel = executable
                .with_compiled(|plugin| plugin.as_any().downcast_ref::<Compiled>().unwrap().has_kernel())
                .await
                .unwrap();
            assert_eq!(has_kernel, expected, "{entry_point}");
            // Those that were linked, this one included.
            assert_eq!(beside(), count + u64::from(!expected), "{entry_point}");
            drop(executable);
            evaluator.close().await;
        }
    }
    pool.close().await;
}

/// A library that is a program too, as toolchains make them: its `_start` is nobody's but a caller's.
#[tokio::test]
async fn a_library_may_export_start_and_stand_in_for_host_functions() {
    let library = wasm(
        r#"(module (func (export "_start") unreachable) (func (export "twice") (param i64) (result i64)
            (i64.mul (local.get 0) (i64.const 2))))"#,
    );
    let plugin = wasm(&format!(
        r#"(module (import "extism:host/user" "twice" (func $twice (param i64) (result i64)))
            (import "extism:host/user" "hosts" (func $hosts (result i64))) {IMPORTS}
            (func (export "run") (result i32)
                (i32.wrap_i64 (i64.sub (call $twice (i64.const 21)) (call $hosts)))))"#
    ));
    for engine in ENGINES {
        let pool = EvaluatorPool::from_settings(&settings(engine)).unwrap();
        let hosts = HostFunction::new("hosts", [], [ValType::I64], |_, _| Ok(vec![Val::I64(42)]));
        let spec = Spec::bytes(plugin.clone()).link("extism:host/user", Source::bytes(library.clone()));
        let evaluator = pool.evaluator("both", spec.host_function(hosts).entry_point("run")).unwrap();
        evaluator.evaluate("").await.unwrap_or_else(|error| panic!("{engine:?}: {}", error.chain()));
        pool.close().await;
    }
}
