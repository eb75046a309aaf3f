//! Where the pool's own work runs, and that nobody's runtime, drop or hanging close keeps others from theirs.

use std::{
    pin::pin,
    sync::atomic::Ordering,
    task::{Context, Waker},
    time::Duration,
};

use evalpool::{CloseReport, Error, Evaluator, EvaluatorPool, Isolation, Response, RuntimeState};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::support::{
    eventually, on_threads,
    spy::{Act, Spy},
};

/// On this crate's own runtime, whatever the test's is.
fn pool_on_its_own(spy: &Spy, capacity: usize) -> EvaluatorPool {
    spy.builder(|builder| builder.capacity(capacity)).build().unwrap()
}

fn evaluators<const N: usize>(pool: &EvaluatorPool, names: [&str; N]) -> [Evaluator; N] {
    names.map(|name| pool.register(name, Spy::spec()).unwrap())
}

fn start(evaluator: &Evaluator) -> JoinHandle<Result<Response, Error>> {
    let evaluator = evaluator.clone();
    tokio::spawn(async move { evaluator.evaluate("x").await })
}

/// A runtime that does nothing unless it is driven.
fn parked() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_caller_whose_runtime_is_not_driven_any_more_strands_nobody() {
    let spy = Spy::default();
    let pool = pool_on_its_own(&spy, 2);
    let [one, two, three] = evaluators(&pool, ["one", "two", "three"]);
    let parked = parked();
    spy.on_compile([Act::Held]);
    let mut stranded = pin!(one.evaluate("stranded"));
    {
        let _within = parked.enter();
        let polled = stranded.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "it waits for its build");
    }
    spy.release();
    on_threads(async {
        let others: Vec<_> = (0..8).map(|_| start(&one)).collect();
        for other in others {
            assert_eq!(other.await.unwrap().unwrap().bytes(), "x#1");
        }
        two.evaluate("").await.unwrap();
    });
    assert_eq!(spy.compiles(), 2);
    // A close that begins there ends as well, and its place goes on to the next.
    {
        let _within = parked.enter();
        drop(two.close_with(Duration::ZERO));
    }
    on_threads(async { three.evaluate("").await.unwrap() });
    assert_eq!((spy.opens(), spy.closes()), (3, 1));
    // The stranded call has its instance, and runs once it is driven.
    assert_eq!(parked.block_on(stranded).unwrap().bytes(), "stranded#1");
    on_threads(async { assert_eq!(pool.close().await, CloseReport::Drained) });
    spy.assert_nothing_left();
}

#[test]
fn a_build_goes_on_when_the_runtime_of_its_caller_ends() {
    let spy = Spy::default();
    spy.on_compile([Act::Held]);
    let pool = pool_on_its_own(&spy, 1);
    let [one] = evaluators(&pool, ["one"]);
    on_threads(async {
        let waits = start(&one);
        eventually("it compiles", || spy.working() == 1).await;
        assert!(!waits.is_finished());
    });
    spy.release();
    on_threads(async {
        one.evaluate("").await.unwrap();
        assert_eq!(spy.compiles(), 1, "of the same build");
        pool.close().await;
    });
    spy.assert_nothing_left();
}

/// The embedder's own runtime, which it ends too early.
#[test]
fn when_a_given_runtime_ends_its_builds_can_be_tried_again_and_its_closes_go_on() {
    let spy = Spy::default();
    spy.on_compile([Act::Succeed, Act::Held]);
    spy.on_call([Act::Never]);
    let given = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let set = |builder: evalpool::PoolBuilder| builder.capacity(2).background(given.handle().clone());
    let pool = spy.builder(|builder| set(builder).idle_ttl(Duration::from_millis(300))).build().unwrap();
    let [runs, builds, next] = evaluators(&pool, ["runs", "builds", "next"]);
    on_threads(async {
        let interrupted = start(&runs);
        eventually("the guest runs", || spy.calls_started() == 1).await;
        let waits = start(&builds);
        eventually("it compiles", || spy.working() == 1).await;
        let closing = runs.close_with(Duration::from_millis(50));
        given.shutdown_background();
        let error = waits.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("try again"), "{error}");
        assert_eq!(interrupted.await.unwrap().unwrap_err().kind(), "closed");
        assert_eq!(closing.await, CloseReport::Forced);
        // From now on this crate's own does the work: builds, evictions, the sweep.
        for evaluator in [&builds, &next] {
            evaluator.evaluate("").await.unwrap();
        }
        eventually("what is idle goes", || pool.runtimes() == 0).await;
    });
    spy.assert_nothing_left();
}

#[test]
fn work_runs_on_the_runtime_that_the_pool_was_given_and_never_on_a_callers() {
    let given = Builder::new_multi_thread().worker_threads(1).thread_name("given").enable_all().build().unwrap();
    let spy = Spy::default();
    for given in [Some(given.handle().clone()), None] {
        let name = if given.is_some() { "given" } else { "evalpool" };
        let pool = spy.builder(|builder| given.into_iter().fold(builder, evalpool::PoolBuilder::background));
        let pool = pool.capacity(1).build().unwrap();
        let [one, two] = evaluators(&pool, ["one", "two"]);
        on_threads(async {
            // The second evicts the first.
            one.evaluate("").await.unwrap();
            two.evaluate("").await.unwrap();
            pool.close().await;
        });
        assert_eq!(spy.take_worked_on(), [name; 4].map(str::to_owned), "two compiles and two closes");
    }
}

/// With no room in the address space for a thread's stack.
#[test]
#[cfg(feature = "service")]
fn where_the_system_refuses_a_thread_callers_are_told_so_and_the_next_one_tries_again() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let this = "background::where_the_system_refuses_a_thread_callers_are_told_so_and_the_next_one_tries_again";
    if !crate::support::process::alone(this) {
        return;
    }
    let (spy, runtime) = (Spy::default(), parked());
    let pool = pool_on_its_own(&spy, 1);
    let [one] = evaluators(&pool, ["one"]);
    let limits = getrlimit(Resource::As);
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let full = pages * rustix::param::page_size() as u64 + (1 << 20);
    setrlimit(Resource::As, Rlimit { current: Some(full), ..limits }).unwrap();
    let blocking = one.evaluate_blocking("").unwrap_err();
    let error = runtime.block_on(one.evaluate("")).unwrap_err();
    setrlimit(Resource::As, limits).unwrap();
    for error in [blocking, error] {
        assert_eq!(error.kind(), "overloaded");
        assert!(error.to_string().contains("no thread can be started"), "{error}");
    }
    assert_eq!(one.evaluate_blocking("x").unwrap().bytes(), "x#1");
    assert_eq!(runtime.block_on(one.evaluate("x")).unwrap().bytes(), "x#1");
    runtime.block_on(pool.close());
    spy.assert_nothing_left();
}

// ---- a close that hangs -----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_close_that_is_overdue_is_not_waited_for_where_another_runtime_can_go() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2).isolation(Isolation::Reuse));
    let [hangs, idle, newcomer] = evaluators(&pool, ["a-hangs", "b-idle", "newcomer"]);
    hangs.evaluate("").await.unwrap();
    idle.evaluate("").await.unwrap();
    spy.keeps_permits(1);
    let waits = start(&newcomer);
    sleep(Duration::from_millis(1_900)).await;
    assert_eq!((spy.closes(), waits.is_finished()), (1, false), "a close takes its time");
    timeout(Duration::from_millis(400), waits).await.expect("it takes another's place").unwrap().unwrap();
    let states: Vec<_> = pool.list(None, 9).into_iter().map(|info| info.state).collect();
    assert_eq!(states, [RuntimeState::Draining, RuntimeState::Cold, RuntimeState::Live]);
    assert_eq!(pool.runtimes(), 2, "the place that hangs is counted all the same");
    // When it ends at last, its place is a place again.
    spy.let_go_of_permits();
    idle.evaluate("").await.unwrap();
    assert_eq!((spy.closes(), spy.runtimes_live_max()), (2, 2));
    pool.close().await;
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn where_nobody_may_wait_and_the_only_place_is_overdue_a_newcomer_is_refused_at_once() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1).max_waiting(0));
    let [hangs, newcomer] = evaluators(&pool, ["hangs", "newcomer"]);
    hangs.evaluate("").await.unwrap();
    spy.keeps_permits(1);
    assert_eq!(hangs.close().await, CloseReport::Unfinished { remaining: 1 });
    let began = tokio::time::Instant::now();
    assert_eq!(newcomer.evaluate("").await.unwrap_err().kind(), "saturated");
    assert_eq!(began.elapsed(), Duration::ZERO);
    spy.let_go_of_permits();
    newcomer.evaluate("").await.unwrap();
}

// ---- a drop that panics -----------------------------------------------------------------------------------------------

/// Instances are dropped after each call, reaped for others, and dropped with their runtimes, which others evict; plugins
/// fail to build.
#[test]
fn an_engines_drop_that_panics_hits_nobody_and_loses_no_count() {
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        let spy = Spy::default();
        spy.drops_panic();
        let set = |builder: evalpool::PoolBuilder| builder.capacity(2).max_instances(2).max_instances_per_evaluator(2);
        let pool = spy.builder(|builder| set(builder).isolation(isolation)).build().unwrap();
        let all = evaluators(&pool, ["one", "two", "three"]);
        on_threads(async {
            for round in 0..10 {
                // The second call of each at once wants the permit of another's idle instance.
                let calls: Vec<_> = all.iter().chain(&all).map(start).collect();
                for call in calls {
                    call.await.unwrap().unwrap_or_else(|error| panic!("{isolation:?}, {round}: {error}"));
                }
                spy.on_instantiate([Act::Fail]);
                let bad = pool.prepare("bad", Spy::spec()).await.err();
                assert!(bad.is_none_or(|error| error.kind() == "invalid_plugin"));
            }
            assert_eq!(pool.close().await, CloseReport::Drained);
        });
        assert!(spy.opens() > 10 && spy.counts().instances_made.load(Ordering::SeqCst) > 10);
        spy.assert_nothing_left();
        assert_eq!(pool.runtimes(), 0);
    }
}
