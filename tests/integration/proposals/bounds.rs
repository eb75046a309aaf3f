//! What each of them may take.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use evalpool::{HostFunction, Isolation, Source, Spec, config::EngineKind};
use futures_util::future::join_all;
use tokio::sync::Barrier;

use super::{
    collected::{PAIRS, TYPES},
    evaluate, plugin,
};
use crate::support::{builder, on_threads, wasm};

async fn ends(spec: Spec) -> String {
    evaluate(spec).await.unwrap_err().kind().to_string()
}

#[tokio::test]
async fn each_ends_at_the_memory_that_it_may_have() {
    let bomb = "(drop (call $list (i32.const 100000000))) (i32.const 0)";
    let large = |length: &str| format!("(drop (array.new_default $bytes (i32.const {length}))) (i32.const 0)");
    let arrays =
        "(local $all (ref $nodes)) (local.set $all (array.new_default $nodes (i32.const 1100000))) (i32.const 0)";
    let thrown = "(tag $t (param exnref))
        (func $throw (param exnref) (result exnref) (block $caught (result exnref exnref)
            (try_table (catch_ref $t $caught) (throw $t (local.get 0))) unreachable) (local.set 0) (drop) (local.get 0))
        (func $for_ever (local $all exnref) (loop $each (local.set $all (call $throw (local.get $all))) (br $each)))";
    for (what, spec) in [
        ("a list without end", plugin(TYPES, bomb)),
        ("an array of half a gigabyte", plugin(TYPES, &large("500000000"))),
        ("an array of 4 GiB", plugin(TYPES, &large("-1"))),
        ("an array of references", plugin(TYPES, arrays)),
        ("exceptions that hold each other", plugin(thrown, "(call $for_ever) (i32.const 0)")),
        ("64 bits", plugin("(memory i64 1)", "(drop (memory.grow (i64.const 130))) (i32.const 0)")),
        (
            "64 bits, and all of them",
            plugin("(memory i64 1)", "(drop (memory.grow (i64.const 0xfffffffffffe))) (i32.const 0)"),
        ),
        (
            "64 bits, and more than there are",
            plugin("(memory i64 1)", "(drop (memory.grow (i64.const -1))) (i32.const 0)"),
        ),
        (
            "four memories in sum",
            plugin(
                "(memory 30) (memory 30) (memory 30) (memory 30)",
                "(drop (memory.grow 2 (i32.const 20))) (i32.const 0)",
            ),
        ),
        (
            "a heap beside a memory",
            plugin(&format!("{TYPES} (memory 120)"), "(drop (call $list (i32.const 50000))) (i32.const 0)"),
        ),
    ] {
        for isolation in [Isolation::Fresh, Isolation::Reuse] {
            assert_eq!(ends(spec.clone().memory(8 << 20).isolation(isolation)).await, "out_of_memory", "{what}");
        }
    }
    // Before anything is compiled.
    for memory in ["(memory i64 129)", "(memory i64 0x1000000000000)", "(memory 65) (memory 65)"] {
        assert_eq!(ends(plugin(memory, "(i32.const 0)").memory(8 << 20)).await, "out_of_memory", "{memory}");
    }
}

#[tokio::test]
async fn a_heap_counts_in_what_an_evaluation_used() {
    let used = async |body: &str| evaluate(plugin(TYPES, body)).await.unwrap().usage().peak_memory.unwrap();
    let nothing = used("(i32.const 0)").await;
    let much = used("(drop (call $list (i32.const 100000))) (i32.const 0)").await;
    assert!((4 << 20..8 << 20).contains(&(much - nothing)), "{nothing} {much}");
}

#[tokio::test]
async fn memories_beyond_four_are_refused_by_their_proposal() {
    let linked = |own: usize, other: usize| {
        let other = format!("(module {})", "(memory 1)".repeat(other));
        plugin(&"(memory 1)".repeat(own), "(i32.const 0)").link("other", Source::bytes(wasm(&other)))
    };
    evaluate(linked(4, 0)).await.unwrap();
    evaluate(linked(4, 1)).await.unwrap();
    for (spec, why) in [
        (linked(5, 0), "multi-memory: it has 5 memories"),
        (linked(1, 2), "multi-memory: other, which it is linked with, has more than one memory"),
        (linked(0, 5), "multi-memory: it has 5 memories"),
    ] {
        let refused = evaluate(spec).await.unwrap_err();
        assert_eq!(refused.kind(), "invalid_plugin");
        assert!(refused.to_string().contains(why), "{refused}");
    }
}

/// Four memories, that of a linked module, and a heap, beside the kernel's memory. Plain ones beside them have their own.
#[tokio::test]
async fn every_instance_that_the_pool_permits_has_its_heap_and_its_memories() {
    const INSTANCES: usize = 3;
    let settings = |pool: evalpool::PoolBuilder| {
        pool.capacity(2).max_instances(2 * INSTANCES).max_instances_per_evaluator(2 * INSTANCES)
    };
    let pool = settings(builder(EngineKind::Direct)).build().unwrap();
    let parts = format!(
        r#"(import "extism:host/user" "meet" (func $meet (param i64) (result i64))) (import "other" "f" (func))
            {TYPES} (memory 1) (memory 1) (memory 1) (memory i64 1) (tag) (table 1 externref) (table 1 anyref)"#
    );
    let other = wasm(r#"(module (memory 1) (table 1 anyref) (func (export "f")))"#);
    for evaluators in [&["wide"][..], &["wide", "plain"]] {
        let each = 2 * INSTANCES / evaluators.len();
        let barrier = Arc::new(Barrier::new(2 * INSTANCES));
        // Nobody returns before all have met.
        let meet = HostFunction::bytes_async("meet", move |_| {
            let barrier = barrier.clone();
            async move {
                barrier.wait().await;
                Ok(vec![])
            }
        });
        let wide = plugin(&parts, "(drop (call $list (i32.const 10))) (drop (call $meet (i64.const 0))) (i32.const 0)");
        let plain = r#"(import "extism:host/user" "meet" (func $meet (param i64) (result i64)))"#;
        let plain = plugin(plain, "(drop (call $meet (i64.const 0))) (i32.const 0)");
        let specs = [("wide", wide.link("other", Source::bytes(other.clone()))), ("plain", plain)];
        let calls = specs.into_iter().filter(|(name, _)| evaluators.contains(name)).flat_map(|(name, spec)| {
            let evaluator = pool.evaluator(name, spec.host_function(meet.clone())).unwrap();
            (0..each).map(move |_| {
                let evaluator = evaluator.clone();
                async move { evaluator.evaluate("").await }
            })
        });
        for response in join_all(calls.collect::<Vec<_>>()).await {
            response.unwrap();
        }
    }
    let slots = pool.slots().unwrap();
    pool.close().await;
    assert!(slots.warm.memories > 0);
}

/// A heap whose live half is full, of small structures or of one array, is collected at each of its allocations.
#[test]
fn a_guest_that_does_nothing_but_collect_ends_at_its_deadline_beside_others() {
    const EXEC: Duration = Duration::from_millis(500);
    // As full as it may be: what is left is filled with smaller and smaller lists.
    let full = "(local $all (ref null $node)) (local.set $all (call $list (i32.const 900000)))
        (loop $each (drop (call $list (i32.const 10000))) (br $each)) unreachable";
    on_threads(async {
        let pool = builder(EngineKind::Direct).capacity(8).build().unwrap();
        let neighbour = plugin("", "(i32.const 0)");
        let neighbour = pool.evaluator("neighbour", neighbour).unwrap();
        neighbour.evaluate("").await.unwrap();
        for parts in [TYPES.to_owned(), format!("{TYPES} {PAIRS}")] {
            let evaluator = pool.evaluator("full", plugin(&parts, full).exec_timeout(EXEC)).unwrap();
            let began = Instant::now();
            let ended = evaluator.evaluate("").await;
            let took = began.elapsed();
            println!("{ended:?} took {took:?}");
            assert_eq!(ended.unwrap_err().kind(), "exec_timeout");
            neighbour.evaluate("").await.unwrap();
        }
        pool.close().await;
    });
}
