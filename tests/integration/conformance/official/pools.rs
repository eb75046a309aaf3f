//! What the official suite asks of pools, on both engines.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use evalpool::HostFunction;

use super::{
    super::{answers, fixture, pool},
    runtime::{mirror, mirrors},
};
use crate::support::{CALL_HOST, ENGINES, TEXT, builder};

#[test]
fn threads_of_a_pool_share_at_most_the_instances_that_it_may_have() {
    for engine in ENGINES {
        for most in 1..=3 {
            let (inside, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (entered, highest) = (inside.clone(), seen.clone());
            let stay = HostFunction::bytes("host_upper", move |input| {
                highest.fetch_max(entered.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                entered.fetch_sub(1, Ordering::SeqCst);
                Ok(input.to_ascii_uppercase())
            });
            let pool =
                builder(engine).capacity(1).max_instances(most).max_instances_per_evaluator(most).build().unwrap();
            let evaluator = pool.evaluator("few", fixture(CALL_HOST, "call_host").host_function(stay)).unwrap();
            std::thread::scope(|threads| {
                for _ in 0..12 {
                    threads.spawn(|| assert_eq!(evaluator.evaluate_blocking("abc").unwrap().bytes(), "ABC"));
                }
            });
            let seen = seen.load(Ordering::SeqCst);
            assert!((1..=most).contains(&seen), "{engine:?}: {seen} of {most}");
        }
    }
}

#[tokio::test]
async fn exists_is_asked_before_anything_runs() {
    for engine in ENGINES {
        let pool = pool(engine);
        for _ in 0..2 {
            assert!(answers(&pool, fixture(TEXT, "count_vowels"), &[b"abc"]).await.remove(0).is_ok(), "{engine:?}");
            let (kind, text) = answers(&pool, fixture(TEXT, "count_words"), &[b"abc"]).await.remove(0).unwrap_err();
            assert!(kind == "entry_point_missing" && text.contains("count_vowels"), "{engine:?}: {kind} {text}");
        }
        pool.close().await;
    }
}

#[test]
fn pool_with_captured_builder_makes_its_instances_on_any_thread() {
    for engine in ENGINES {
        let spec = mirror().host_function(mirrors());
        let pool = pool(engine);
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (pool, spec) = (pool.clone(), spec.clone());
                std::thread::spawn(move || {
                    let evaluator = pool.evaluator(&format!("thread-{thread}"), spec).unwrap();
                    assert_eq!(evaluator.evaluate_blocking("abc").unwrap().bytes(), "abc");
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
