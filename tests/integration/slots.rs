//! The slots of `direct` are as many as its instances may need, whatever each is made of.

use std::sync::Arc;

use evalpool::{HostFunction, Source, Spec, config::EngineKind};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::sync::Barrier;

use crate::support::{builder, wasm};

/// Three memories and a heap for references beside the kernel's memory, and the most that an instance has whose slots are
/// plain: two memories, and a heap of which only a body tells.
#[tokio::test]
async fn every_instance_that_the_pool_permits_has_its_slots() {
    let four = "(table 1 externref)".repeat(4);
    let references = format!("{four} (global (mut externref) (ref.null extern))");
    all_at_once(&["one", "two"], &four, &references).await;
    let body = "(func (drop (array.len (ref.null array))))";
    all_at_once(&["one"], body, body).await;
}

async fn all_at_once(linked: &[&str], of_linked: &str, own: &str) {
    const INSTANCES: usize = 3;
    let pool =
        builder(EngineKind::Direct).capacity(1).max_instances(INSTANCES).max_instances_per_evaluator(INSTANCES).build();
    let pool = pool.unwrap();
    let module = Source::bytes(wasm(&format!("(module (memory 1) {of_linked} (func (export \"nothing\")))")));
    let imports: Vec<_> = linked.iter().map(|name| format!(r#"(import "{name}" "nothing" (func))"#)).collect();
    let imports = imports.concat();
    let text = format!(
        r#"(module (import "extism:host/user" "meet" (func $meet (param i64) (result i64)))
            {imports} (memory 1) {own}
            (func (export "run") (drop (call $meet (i64.const 0)))))"#
    );
    // Nobody returns before all have met.
    let barrier = Arc::new(Barrier::new(INSTANCES));
    let meet = HostFunction::bytes_async("meet", move |_| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            Ok(vec![])
        }
    });
    let spec = Spec::new(Source::bytes(wasm(&text))).host_function(meet);
    let spec = linked.iter().fold(spec, |spec, name| spec.link(*name, module.clone()));
    let evaluator = pool.evaluator("large", spec).unwrap();
    for _ in 0..2 {
        for response in join_all((0..INSTANCES).map(|_| evaluator.evaluate(""))).await {
            response.unwrap();
        }
    }
    pool.close().await;
}

/// Three instances may be, with room for sixteen linked modules: there are a few slots in any case.
#[tokio::test]
async fn linked_modules_share_their_slots() {
    let pool = builder(EngineKind::Direct).capacity(1).max_instances(3).max_instances_per_evaluator(3).build().unwrap();
    let barrier = Arc::new(Barrier::new(3));
    let within = barrier.clone();
    let meet = HostFunction::bytes_async("meet", move |_| {
        let within = within.clone();
        async move {
            within.wait().await;
            Ok(vec![])
        }
    });
    let names: Vec<_> = ('a'..='h').map(String::from).collect();
    let imports: Vec<_> = names.iter().map(|name| format!(r#"(import "{name}" "nothing" (func))"#)).collect();
    let imports = imports.concat();
    let text = format!(
        r#"(module (import "extism:host/user" "meet" (func $meet (param i64) (result i64))) {imports}
            (func (export "run") (drop (call $meet (i64.const 0)))))"#
    );
    let linked = || Source::bytes(wasm(r#"(module (memory 1) (func (export "nothing")))"#));
    let spec = Spec::new(Source::bytes(wasm(&text))).host_function(meet);
    let spec = names.iter().fold(spec, |spec, name| spec.link(name, linked()));
    let evaluator = pool.evaluator("large", spec).unwrap();
    let mut calls: FuturesUnordered<_> = (0..3).map(|_| evaluator.evaluate("")).collect();
    let refused = calls.next().await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), "overloaded");
    assert!(refused.to_string().contains("linked modules"), "{refused}");
    let (rest, _) = tokio::join!(calls.collect::<Vec<_>>(), barrier.wait());
    for response in rest {
        response.unwrap();
    }
    pool.close().await;
}
