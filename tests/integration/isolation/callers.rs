//! What the callers of one evaluator learn of another: nothing.

use std::time::Duration;

use evalpool::{Digest, EvaluatorPool, HostFunction, Isolation, Source, Spec};
use tokio::task::JoinSet;

use super::settings;
use crate::support::{GREET, TEXT, wasm};

/// A plugin that is refused, for it imports what nobody has.
fn wants(name: &str) -> Vec<u8> {
    wasm(&format!(r#"(module (import "env" "{name}" (func)) (func (export "run")))"#))
}

fn pool() -> EvaluatorPool {
    let mut settings = settings(Isolation::Fresh);
    settings.pool.negative_ttl = Duration::from_mins(10);
    EvaluatorPool::from_settings(&settings).unwrap()
}

#[tokio::test]
async fn a_failed_build_is_told_to_the_callers_of_its_own_evaluator_only() {
    let pool = pool();
    let evaluators = ["alpha", "beta"].map(|name| {
        let evaluator = pool.evaluator(name, Spec::new(Source::bytes(wants(name)))).unwrap();
        (name, evaluator)
    });
    let greet = pool.evaluator("greet", Spec::new(Source::bytes(GREET))).unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        for (name, evaluator) in evaluators.clone() {
            calls.spawn(async move {
                let error = evaluator.evaluate("").await.unwrap_err();
                assert_eq!(error.kind(), "invalid_plugin");
                let other = if name == "alpha" { "beta" } else { "alpha" };
                // Nor in what the operator reads.
                assert!(error.to_string().contains(name) && !error.chain().contains(other), "{}", error.chain());
            });
        }
        let greet = greet.clone();
        calls.spawn(async move { drop(greet.evaluate(r#"{"name":"Ada"}"#).await.unwrap()) });
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
    pool.close().await;
}

#[tokio::test]
async fn a_failure_that_is_remembered_is_nobody_elses() {
    let pool = pool();
    let bad = Spec::new(Source::bytes(wants("mystery")));
    let first = pool.register("one", bad.clone()).unwrap();
    for _ in 0..2 {
        assert_eq!(first.evaluate("").await.unwrap_err().kind(), "invalid_plugin");
    }
    // The same bytes, of another evaluator whose host provides what they want.
    let function = HostFunction::new("mystery", [], [], |_, _| Ok(vec![])).in_module("env");
    let other = pool.register("other", bad.host_function(function)).unwrap();
    other.evaluate("").await.unwrap();
    // Another plugin by the same name.
    let replaced = pool.register("one", Spec::new(Source::bytes(TEXT)).entry_point("upper")).unwrap();
    assert_eq!(replaced.evaluate("abc").await.unwrap().bytes(), "ABC");
    pool.close().await;
}

#[tokio::test]
async fn each_response_is_of_its_own_evaluator_plugin_and_time() {
    let pool = pool();
    let numbered =
        |number: usize| wasm(&format!(r#"(module (global i32 (i32.const {number})) (func (export "run")))"#));
    let mut calls = JoinSet::new();
    for number in 0..8 {
        let bytes = numbered(number);
        let evaluator = pool.evaluator(&format!("e{number}"), Spec::new(Source::bytes(bytes.clone()))).unwrap();
        calls.spawn(async move {
            for _ in 0..10 {
                let response = evaluator.evaluate("").await.unwrap();
                assert_eq!(response.evaluator(), evaluator.id());
                assert_eq!(response.digest(), Digest::of(&bytes));
            }
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
    // One that is built does not hear of the time that another's build takes.
    let [warm, cold] = [0, 100]
        .map(|number| pool.evaluator(&format!("w{number}"), Spec::new(Source::bytes(numbered(number)))).unwrap());
    warm.evaluate("").await.unwrap();
    let (warm, cold) = tokio::join!(warm.evaluate(""), cold.evaluate(""));
    assert_eq!(warm.unwrap().timings().build, Duration::ZERO);
    assert!(cold.unwrap().timings().build > Duration::ZERO);
    pool.close().await;
}
