//! What is refused from a plugin's bytes alone, before it costs anybody a place or a compile; and in which order linked
//! modules reach the engine. On the spy, which compiles whatever it is given.

use evalpool::{Error, HostFunction, Source, Spec, Wasi};

use crate::support::{spy::Spy, wasm};

fn module(text: &str) -> Spec {
    Spec::new(Source::bytes(wasm(text)))
}

/// A module that imports these, as `from name`.
fn importing(imports: &[(&str, &str)]) -> String {
    let imports: Vec<_> = imports.iter().map(|(from, name)| format!(r#"(import "{from}" "{name}" (func))"#)).collect();
    let imports = imports.concat();
    format!(r#"(module {imports} (func (export "run")))"#)
}

/// Evaluates once. Also says whether the engine was asked to compile.
async fn once(spy: &Spy, spec: Spec) -> (Result<(), Error>, bool) {
    let before = spy.compiles();
    let pool = spy.pool(|builder| builder.capacity(1));
    let came = pool.evaluator("one", spec).unwrap().evaluate("").await.map(drop);
    pool.close().await;
    (came, spy.compiles() > before)
}

async fn runs(spec: Spec) {
    let (came, compiled) = once(&Spy::default(), spec).await;
    came.unwrap();
    assert!(compiled);
}

async fn is_refused(spec: Spec, kind: &str, says: &str) {
    let (came, compiled) = once(&Spy::default(), spec).await;
    let error = came.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(says), "{error}");
    assert!(!compiled, "{error}");
}

#[tokio::test(start_paused = true)]
async fn imports_that_nothing_provides_are_refused_by_name() {
    let extism = [("extism:host/env", "alloc"), ("extism:host/env", "http_request")];
    runs(module(&importing(&extism))).await;
    let unknown = importing(&[extism[0], ("extism:host/env", "mystery")]);
    is_refused(module(&unknown), "invalid_plugin", "extism:host/env::mystery, which this host does not provide").await;
    let elsewhere = importing(&[("env", "alloc")]);
    is_refused(module(&elsewhere), "invalid_plugin", "env::alloc, which this host does not provide").await;
}

#[tokio::test(start_paused = true)]
async fn wasi_is_there_unless_it_is_off() {
    let text = importing(&[("wasi_snapshot_preview1", "fd_write")]);
    runs(module(&text)).await;
    runs(module(&text).wasi(Wasi::Auto)).await;
    let off = module(&text).wasi(Wasi::Off);
    is_refused(off, "invalid_plugin", "wasi_snapshot_preview1::fd_write, and WASI is off").await;
}

#[tokio::test(start_paused = true)]
async fn an_embedders_function_is_there_under_its_own_module_and_name_only() {
    let ours = || HostFunction::bytes("ours", |input| Ok(input.to_vec()));
    let user = importing(&[("extism:host/user", "ours")]);
    runs(module(&user).host_function(ours())).await;
    runs(module(&importing(&[("theirs", "ours")])).host_function(ours().in_module("theirs"))).await;
    // One that stands in for Extism's, or for WASI's where that is off.
    let alloc = importing(&[("extism:host/env", "of_old")]);
    let of_old = HostFunction::bytes("of_old", |input| Ok(input.to_vec())).in_module("extism:host/env");
    runs(module(&alloc).host_function(of_old)).await;
    is_refused(module(&user), "invalid_plugin", "extism:host/user::ours").await;
    let other = module(&user).host_function(ours().in_module("theirs"));
    is_refused(other, "invalid_plugin", "extism:host/user::ours").await;
    let another = module(&importing(&[("extism:host/user", "another")])).host_function(ours());
    is_refused(another, "invalid_plugin", "extism:host/user::another").await;
}

#[tokio::test(start_paused = true)]
async fn linked_modules_reach_the_engine_after_those_that_they_import_from() {
    let source = |imports: &[(&str, &str)]| Source::bytes(wasm(&importing(imports)));
    let main = importing(&[("a", "run"), ("b", "run")]);
    for a_first in [true, false] {
        let spy = Spy::default();
        let (a, b) = (source(&[("b", "run")]), source(&[]));
        let spec = module(&main);
        let spec = if a_first { spec.link("a", a).link("b", b) } else { spec.link("b", b).link("a", a) };
        once(&spy, spec).await.0.unwrap();
        assert_eq!(spy.linked(), ["b", "a"]);
    }
    let (a, b) = (source(&[("b", "run")]), source(&[("a", "run")]));
    let circle = module(&main).link("a", a).link("b", b);
    is_refused(circle, "invalid_plugin", "the modules a, b import from each other").await;
    let itself = module(&importing(&[("a", "run")])).link("a", source(&[("a", "run")]));
    is_refused(itself, "invalid_plugin", "the modules a import from each other").await;
    let unknown = module(&main).link("a", source(&[("c", "run")])).link("b", source(&[]));
    is_refused(unknown, "invalid_plugin", "c::run, which this host does not provide").await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_cannot_be_linked() {
    let empty = || Source::bytes(wasm("(module)"));
    for name in ["", "main", "extism:host/env", "wasi_snapshot_preview1"] {
        let spec = Spy::spec().link(name, empty());
        is_refused(spec, "invalid_request", &format!("{name:?}: the name is taken")).await;
    }
    let twice = Spy::spec().link("twice", empty()).link("twice", empty());
    is_refused(twice, "invalid_request", "\"twice\": the name is taken").await;
    let spy = Spy::default();
    once(&spy, Spy::spec().link("one", empty()).link("two", empty())).await.0.unwrap();
    assert_eq!(spy.linked(), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn what_an_engine_does_not_run_costs_no_place() {
    let spy = Spy::default();
    spy.takes_only_trusted();
    let (came, compiled) = once(&spy, Spy::spec()).await;
    assert_eq!((came.unwrap_err().kind().as_str(), compiled), ("invalid_request", false));
    assert_eq!(spy.runtimes_live_max(), 0);
    let (came, compiled) = once(&spy, Spy::spec().trusted(true)).await;
    came.unwrap();
    assert!(compiled);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_needs_too_much_memory_to_start_is_told_how_much() {
    let needs = |mebibytes: u64| format!(r#"(module (memory {}) (func (export "run")))"#, mebibytes * 16);
    runs(module(&needs(64))).await;
    let says = "the plugin needs 70 MiB to start; limits.memory is 64 MiB";
    is_refused(module(&needs(70)), "out_of_memory", says).await;
    // Modules that are linked count as well.
    let linked = module(&needs(40)).link("more", Source::bytes(wasm(&needs(30))));
    is_refused(linked, "out_of_memory", says).await;
    is_refused(module(&needs(2)).memory(1 << 20), "out_of_memory", "2 MiB to start; limits.memory is 1 MiB").await;
}
