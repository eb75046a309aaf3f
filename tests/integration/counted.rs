//! What the counters and gauges say, on the spy, where each cause can be made to happen alone.

use std::time::Duration;

use evalpool::{Isolation, PoolBuilder, RuntimeState, Settings};
use tokio::time::sleep;

use crate::support::{
    measured::Measured,
    spy::{Act, Spy},
};

fn settings(isolation: Isolation) -> Settings {
    let mut settings = Settings::default();
    settings.engine.isolation = isolation;
    settings
}

/// What the guard closes is counted too: see `guard`.
#[tokio::test(start_paused = true)]
async fn a_close_is_counted_by_its_reason() {
    let spy = Spy::default();
    let pool = Measured::new(&spy, |builder| builder.capacity(1).idle_ttl(Duration::from_mins(1)));
    let [one, two] = ["one", "two"].map(|name| pool.register(name, Spy::spec()).unwrap());
    let closes = async || {
        sleep(Duration::from_millis(10)).await;
        ["capacity", "idle", "replaced", "closed", "shutdown", "invalid"]
            .map(|reason| pool.sum("evalpool_closes_total", &format!("reason=\"{reason}\"")))
    };
    one.evaluate("").await.unwrap();
    two.evaluate("").await.unwrap();
    assert_eq!(closes().await, [1, 0, 0, 0, 0, 0]);
    sleep(Duration::from_mins(3)).await;
    assert_eq!(closes().await, [1, 1, 0, 0, 0, 0]);
    one.evaluate("").await.unwrap();
    pool.register("one", Spy::spec()).unwrap();
    assert_eq!(closes().await, [1, 1, 1, 0, 0, 0]);
    one.evaluate("").await.unwrap();
    one.unload().await;
    assert_eq!(closes().await, [1, 1, 1, 1, 0, 0]);
    one.evaluate("").await.unwrap();
    pool.close().await;
    assert_eq!(closes().await, [1, 1, 1, 1, 1, 0]);
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_discarded_instance_is_counted_by_its_reason() {
    for (reason, isolation, input, act) in [
        ("used", Isolation::Fresh, "", Act::Succeed),
        ("max_uses", Isolation::Reuse, "", Act::Succeed),
        ("timeout", Isolation::Reuse, "", Act::Never),
        ("cancelled", Isolation::Reuse, "", Act::Never),
        ("trap", Isolation::Reuse, "trap", Act::Succeed),
        ("panic", Isolation::Reuse, "", Act::Panic),
        ("closed", Isolation::Reuse, "", Act::Never),
    ] {
        let spy = Spy::default();
        let mut settings = settings(isolation);
        settings.pool.max_uses = 1;
        let pool = Measured::new(&spy, |_| PoolBuilder::from(settings).park_after(0));
        let evaluator = pool.register("one", Spy::spec()).unwrap();
        spy.on_call([act]);
        let mut call = Box::pin(evaluator.evaluate(input));
        match reason {
            "cancelled" => drop(tokio::time::timeout(Duration::from_secs(1), call.as_mut()).await.unwrap_err()),
            "closed" => {
                let closing = async {
                    sleep(Duration::from_millis(100)).await;
                    evaluator.close_with(Duration::from_millis(10)).await
                };
                assert_eq!(tokio::join!(call.as_mut(), closing).0.unwrap_err().kind(), "closed");
            }
            _ => drop(call.as_mut().await),
        }
        drop(call);
        sleep(Duration::from_millis(1)).await;
        let discards = |labels: &str| pool.sum("evalpool_instances_discarded_total", labels);
        assert_eq!((discards(&format!("\"{reason}\"")), discards("")), (1, 1), "{reason}");
    }
}

/// It is the thread's until the thread has not used it for a while, or somebody asks how many are idle.
#[tokio::test(start_paused = true)]
async fn an_instance_that_a_thread_keeps_counts_as_busy() {
    let spy = Spy::default();
    let pool = Measured::new(&spy, |_| PoolBuilder::from(settings(Isolation::Reuse)).park_after(2));
    let evaluator = pool.register("one", Spy::spec()).unwrap();
    let (busy, idle) = (r#"state="busy""#, r#"state="idle""#);
    let shown = || [busy, idle].map(|state| pool.sum("evalpool_instances_live", state));
    for _ in 0..2 {
        // After a pause it is given back, and after the next two calls.
        sleep(Duration::from_secs(1)).await;
        for _ in 0..3 {
            evaluator.evaluate("").await.unwrap();
            assert_eq!(shown(), [0, 1]);
        }
        // From then on the thread keeps it, and takes what it keeps.
        for _ in 0..10 {
            evaluator.evaluate("").await.unwrap();
            assert_eq!(shown(), [1, 0]);
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(shown(), [0, 1]);
    }
    for _ in 0..4 {
        evaluator.evaluate("").await.unwrap();
    }
    assert_eq!(shown(), [1, 0]);
    assert_eq!(pool.snapshot().runtimes[0].busy, 0);
    assert_eq!(shown(), [0, 1]);
    assert_eq!(spy.instances_live(), 1);
}

/// The calls of an instance that a thread keeps are counted with it. They are told before metrics are shown, also when the
/// thread is in the next call already; and by themselves after a while.
#[tokio::test(start_paused = true)]
async fn calls_of_an_instance_that_a_thread_keeps_are_shown_exactly() {
    let spy = Spy::default();
    let pool = Measured::new(&spy, |_| PoolBuilder::from(settings(Isolation::Reuse)).park_after(2));
    let evaluator = pool.register("one", Spy::spec()).unwrap();
    let shown = || {
        let ended = pool.sum("evalpool_evaluations_total", r#"outcome="ok""#);
        let phases = ["wait", "exec"].map(|phase| pool.sum("evalpool_evaluation_seconds_count", phase));
        assert_eq!(phases, [ended; 2]);
        (ended, pool.sum("evalpool_lookups_total", "hit"))
    };
    for calls in 1..=10 {
        evaluator.evaluate("").await.unwrap();
        let _ = pool.slots();
        assert_eq!(shown(), (calls, calls - 1));
    }
    for _ in 0..10 {
        evaluator.evaluate("").await.unwrap();
    }
    let mut endless = Box::pin(evaluator.evaluate(""));
    spy.on_call([Act::Never]);
    tokio::time::timeout(Duration::from_millis(1), endless.as_mut()).await.unwrap_err();
    let _ = pool.slots();
    assert_eq!(shown(), (20, 19));
    drop(endless);
    for _ in 0..10 {
        evaluator.evaluate("").await.unwrap();
    }
    sleep(Duration::from_millis(200)).await;
    assert_eq!(pool.sum("evalpool_evaluations_total", r#"outcome="ok""#), 30);
    assert_eq!(pool.sum("evalpool_lookups_total", "hit") + pool.sum("evalpool_lookups_total", "miss"), 31);
    for _ in 0..10 {
        evaluator.evaluate("").await.unwrap();
    }
    pool.close().await;
    assert_eq!(pool.sum("evalpool_evaluations_total", r#"outcome="ok""#), 40);
    assert_eq!(pool.sum("evalpool_evaluations_total", ""), 41);
}

/// Without being asked, within a second.
#[tokio::test(start_paused = true)]
async fn the_oldest_wait_is_shown_whatever_it_is_for() {
    let spy = Spy::default();
    let pool = Measured::new(&spy, |builder| builder.capacity(2).max_instances_per_evaluator(1));
    let [one, two] = ["one", "two"].map(|name| pool.register(name, Spy::spec()).unwrap());
    let shown = || -> f64 {
        let rendered = pool.metrics.render();
        rendered.lines().find_map(|line| line.strip_prefix("evalpool_oldest_wait_seconds ")).unwrap().parse().unwrap()
    };
    // An instance.
    spy.on_call([Act::Slow(Duration::from_secs(4))]);
    let holds = tokio::spawn({
        let one = one.clone();
        async move { one.evaluate("").await.map(drop) }
    });
    sleep(Duration::from_secs(1)).await;
    let waits = tokio::spawn(async move { one.evaluate("").await.map(drop) });
    sleep(Duration::from_millis(2500)).await;
    assert!((1.4..=2.5).contains(&shown()), "{}", shown());
    let _ = pool.slots();
    assert_eq!(format!("{:.1}", shown()), "2.5");
    let ended = tokio::join!(holds, waits);
    assert!(ended.0.unwrap().is_ok() && ended.1.unwrap().is_ok());
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(format!("{:.3}", shown()), "0.000");
    // A build.
    spy.on_compile([Act::Slow(Duration::from_secs(2))]);
    let waits = tokio::spawn(async move { two.evaluate("").await.map(drop) });
    sleep(Duration::from_secs(1)).await;
    let _ = pool.slots();
    assert_eq!(format!("{:.1}", shown()), "1.0");
    waits.await.unwrap().unwrap();
    let _ = pool.slots();
    assert_eq!(format!("{:.3}", shown()), "0.000");
}

/// A plugin that fails is not built again for a while. Of those the pool remembers a bounded number.
#[tokio::test(start_paused = true)]
async fn the_thousand_failures_that_came_last_are_remembered() {
    const MOST: usize = 1024;
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(4));
    let all: Vec<_> = (0..=MOST).map(|at| pool.register(&at.to_string(), Spy::spec()).unwrap()).collect();
    spy.on_compile(vec![Act::Fail; 2 * MOST]);
    let compiles = async |at: usize| {
        let before = spy.compiles();
        all[at].evaluate("").await.unwrap_err();
        spy.compiles() - before
    };
    for at in 0..MOST {
        assert_eq!(compiles(at).await, 1);
    }
    assert_eq!(compiles(0).await, 0);
    // One more, and the one that was not asked for longest is forgotten.
    assert_eq!(compiles(MOST).await, 1);
    assert_eq!((compiles(0).await, compiles(2).await, compiles(1).await), (0, 0, 1));
    assert!(all.iter().all(|evaluator| pool.info(evaluator.name()).unwrap().state == RuntimeState::Cold));
}

#[tokio::test(start_paused = true)]
async fn a_loop_over_more_than_fit_says_which_capacity_would_do() {
    let spy = Spy::default();
    let pool = Measured::new(&spy, |builder| builder.capacity(2).isolation(Isolation::Fresh));
    let names: Vec<_> = (0..7).map(|number| format!("e{number}")).collect();
    for name in &names {
        pool.register(name, Spy::spec()).unwrap();
    }
    for _ in 0..4 {
        for name in &names {
            pool.get(name).unwrap().evaluate("").await.unwrap();
        }
    }
    pool.slots();
    let within = |bound: &str| pool.sum("evalpool_reuse_distance_total", &format!("within=\"{bound}\""));
    assert_eq!(["1", "4", "8", "65536", "+Inf"].map(within), [0, 0, 21, 21, 28]);

    // What is no more stands between no others. Nor does what is looked up by nobody.
    for name in &names[2..] {
        pool.get(name).unwrap().close().await;
    }
    for name in &names[..2] {
        pool.get(name).unwrap().evaluate("").await.unwrap();
    }
    pool.slots();
    assert_eq!(["1", "2", "4", "8", "+Inf"].map(within), [0, 2, 2, 23, 30]);
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn calls_of_parked_instances_would_hit_where_all_of_those_fit() {
    let spy = Spy::default();
    let pool = Measured::new(&spy, |builder| builder.capacity(8).isolation(Isolation::Reuse));
    let evaluators = ["a", "b", "c"].map(|name| pool.register(name, Spy::spec()).unwrap());
    for _ in 0..20 {
        for evaluator in &evaluators {
            evaluator.evaluate("").await.unwrap();
        }
    }
    // It is looked ten times a second of how many instances are parked.
    sleep(Duration::from_millis(150)).await;
    pool.slots();
    let within = |bound: &str| pool.sum("evalpool_reuse_distance_total", &format!("within=\"{bound}\""));
    assert_eq!(["1", "2", "4", "+Inf"].map(within), [0, 0, 57, 60]);
    pool.close().await;
}
