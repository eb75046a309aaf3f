//! `[tenants]`: what a tenant may have at most, and that no other notices when it has it all.

mod neighbours;
#[cfg(all(feature = "service", feature = "direct"))]
mod real;

use std::time::Duration;

use evalpool::{
    Bound, Error, Evaluator, EvaluatorPool, Isolation, PoolBuilder, Response, RuntimeState,
    config::{LimitSettings, TenantBounds, TenantSettings},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::support::{
    eventually,
    spy::{Act, Spy},
};

const WAIT: Duration = Duration::from_secs(100);

/// Far less than whoever waits in vain waits for.
const SOON: Duration = Duration::from_secs(1);

const LONG: Act = Act::Slow(Duration::from_secs(50));

pub(super) fn bounds(set: impl FnOnce(&mut TenantBounds)) -> TenantBounds {
    let mut bounds = TenantBounds::default();
    set(&mut bounds);
    bounds
}

/// What "acme" may have.
fn for_acme(set: impl FnOnce(&mut TenantBounds)) -> TenantSettings {
    TenantSettings { named: [("acme".to_owned(), bounds(set))].into(), ..TenantSettings::default() }
}

fn pool_with(spy: &Spy, tenants: TenantSettings, set: impl FnOnce(PoolBuilder) -> PoolBuilder) -> EvaluatorPool {
    let long = Duration::from_hours(1);
    let patient =
        LimitSettings { wait_timeout: WAIT, exec_timeout: long, build_timeout: long, ..LimitSettings::default() };
    spy.pool(|builder| set(builder.limits(patient).isolation(Isolation::Reuse)).tenants(tenants))
}

fn pool(spy: &Spy, set: impl FnOnce(&mut TenantBounds)) -> EvaluatorPool {
    pool_with(spy, for_acme(set), |builder| builder.capacity(8).max_instances(16).build_concurrency(4))
}

fn evaluator(pool: &EvaluatorPool, name: &str) -> Evaluator {
    pool.register(name, Spy::spec()).unwrap()
}

type Call = JoinHandle<Result<Response, Error>>;

fn call(evaluator: &Evaluator) -> Call {
    let evaluator = evaluator.clone();
    tokio::spawn(async move { evaluator.evaluate("").await })
}

/// One whose guest runs when this returns.
async fn start(spy: &Spy, evaluator: &Evaluator) -> Call {
    let before = spy.calls_started();
    let call = call(evaluator);
    eventually("the guest runs", || spy.calls_started() > before).await;
    call
}

/// One that has to wait.
async fn wait_behind(evaluator: &Evaluator) -> Call {
    let call = call(evaluator);
    // With time paused, this returns when every task has gone as far as it can.
    sleep(Duration::from_millis(1)).await;
    assert!(!call.is_finished());
    call
}

async fn at_once(evaluator: &Evaluator) {
    timeout(SOON, evaluator.evaluate("")).await.expect("nothing keeps it waiting").unwrap();
}

#[track_caller]
fn assert_exceeded(result: Result<Response, Error>, expected: Bound, value: u64) {
    match result {
        Err(Error::QuotaExceeded { tenant, bound, limit, retry_after }) => {
            assert_eq!((&*tenant, bound, limit), ("acme", expected, value));
            assert!(retry_after >= Duration::from_secs(1));
        }
        other => panic!("{other:?}"),
    }
}

fn state(pool: &EvaluatorPool, name: &str) -> RuntimeState {
    pool.info(name).unwrap().state
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_so_many_instances_at_once_and_no_other_waits_for_it() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.instances = Some(2));
    let (acme, other) = (evaluator(&pool, "acme/a"), evaluator(&pool, "other/a"));
    spy.on_call([LONG, LONG]);
    let running = [start(&spy, &acme).await, start(&spy, &acme).await];
    let waits = wait_behind(&acme).await;
    assert_eq!((pool.tenant("acme").unwrap().instances, pool.tenant("acme").unwrap().waiting), (2, 1));
    for _ in 0..5 {
        at_once(&other).await;
    }
    // What it waits for comes.
    assert!(waits.await.unwrap().is_ok());
    for call in running {
        assert!(call.await.unwrap().is_ok());
    }
    assert_eq!(spy.instances_live(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_is_told_the_bound_and_the_tenant() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.instances = Some(1));
    let (a, b) = (evaluator(&pool, "acme/a"), evaluator(&pool, "acme/b"));
    spy.on_call([Act::Never]);
    let _runs = start(&spy, &a).await;
    let (live, cold) = (call(&a), call(&b));
    assert_exceeded(live.await.unwrap(), Bound::Instances, 1);
    assert_exceeded(cold.await.unwrap(), Bound::Instances, 1);
    let said = a.evaluate("").await.unwrap_err().to_string();
    assert_eq!(said, r#"the tenant "acme" has used up its bound: instances = 1"#);
}

#[tokio::test(start_paused = true)]
async fn idle_instances_of_a_tenant_give_way_to_its_own_callers_and_to_its_builds() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.instances = Some(2));
    let [a, b, c] = ["acme/a", "acme/b", "acme/c"].map(|name| evaluator(&pool, name));
    at_once(&a).await;
    at_once(&b).await;
    // Both have an idle instance, and may be parked. `a` is the less recently used.
    at_once(&c).await;
    assert_eq!(pool.tenant("acme").unwrap().instances, 2);
    spy.on_call([LONG]);
    let _runs = start(&spy, &b).await;
    at_once(&a).await;
    at_once(&c).await;
    assert_eq!((spy.compiles(), pool.runtimes()), (3, 3), "no runtime had to go");
}

#[tokio::test(start_paused = true)]
async fn within_a_tenant_no_evaluator_keeps_the_others_from_its_instances() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.instances = Some(1));
    let (hot, other, cold) =
        (evaluator(&pool, "acme/hot"), evaluator(&pool, "acme/other"), evaluator(&pool, "acme/cold"));
    at_once(&other).await;
    spy.on_call((0..100).map(|_| Act::Slow(SOON)));
    let _hot: Vec<_> = (0..50).map(|_| call(&hot)).collect();
    sleep(SOON / 2).await;
    let (live, build) = (call(&other), call(&cold));
    let _more: Vec<_> = (0..50).map(|_| call(&hot)).collect();
    // Those who came before, and these.
    sleep(SOON * 53).await;
    assert!(live.is_finished() && build.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_so_many_runtimes_and_closes_its_own_for_one_more() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.runtimes = Some(2));
    let [a, b, c] = ["acme/a", "acme/b", "acme/c"].map(|name| evaluator(&pool, name));
    let other = evaluator(&pool, "other/a");
    at_once(&other).await;
    for evaluator in [&a, &b, &a, &c] {
        at_once(evaluator).await;
    }
    let states = ["acme/a", "acme/b", "acme/c", "other/a"].map(|name| state(&pool, name));
    assert_eq!(states, [RuntimeState::Live, RuntimeState::Cold, RuntimeState::Live, RuntimeState::Live]);
    assert_eq!((pool.tenant("acme").unwrap().runtimes, spy.runtimes_live_max()), (2, 3));
    // All are in use: the newcomer waits, and others do not.
    spy.on_call([LONG, Act::Never]);
    let short = start(&spy, &a).await;
    let _long = start(&spy, &c).await;
    let waits = wait_behind(&b).await;
    at_once(&evaluator(&pool, "other/b")).await;
    assert!(short.await.unwrap().is_ok() && waits.await.unwrap().is_ok());
    spy.on_call([Act::Never]);
    let _long = start(&spy, &b).await;
    assert_exceeded(a.evaluate("").await, Bound::Runtimes, 2);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_never_idle_does_not_keep_its_tenants_newcomer_out() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.runtimes = Some(1));
    let (hot, cold) = (evaluator(&pool, "acme/hot"), evaluator(&pool, "acme/cold"));
    let busy = |hot: Evaluator| async move { while hot.evaluate("").await.is_ok() {} };
    spy.on_call((0..1000).map(|_| Act::Slow(SOON)));
    let first = tokio::spawn(busy(hot.clone()));
    sleep(SOON / 2).await;
    let second = tokio::spawn(busy(hot));
    sleep(SOON * 3).await;
    timeout(SOON * 10, cold.evaluate("")).await.expect("it is its turn").unwrap();
    first.abort();
    second.abort();
}

#[tokio::test(start_paused = true)]
async fn so_many_builds_of_a_tenant_compile_at_once_and_those_of_others_do_not_wait_for_them() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.build_concurrency = Some(1));
    let (a, b, other) = (evaluator(&pool, "acme/a"), evaluator(&pool, "acme/b"), evaluator(&pool, "other/a"));
    spy.on_compile([Act::Never]);
    let _builds = wait_behind(&a).await;
    let waits = wait_behind(&b).await;
    at_once(&other).await;
    assert_eq!((pool.tenant("acme").unwrap().runtimes, spy.compiles()), (1, 2));
    assert_exceeded(waits.await.unwrap(), Bound::BuildConcurrency, 1);
}

#[tokio::test(start_paused = true)]
async fn so_many_callers_of_a_tenant_wait_and_the_next_is_refused_at_once() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| {
        acme.max_waiting = Some(2);
        acme.instances = Some(1);
    });
    let (a, b, other) = (evaluator(&pool, "acme/a"), evaluator(&pool, "acme/b"), evaluator(&pool, "other/a"));
    spy.on_call([LONG]);
    let _runs = start(&spy, &a).await;
    let waiting = [wait_behind(&a).await, wait_behind(&b).await];
    for evaluator in [&a, &b] {
        assert_exceeded(timeout(SOON, evaluator.evaluate("")).await.unwrap(), Bound::MaxWaiting, 2);
    }
    at_once(&other).await;
    for call in waiting {
        assert!(call.await.unwrap().is_ok());
    }
    assert_eq!(pool.tenant("acme").unwrap().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_may_wait_what_can_begin_at_once_still_does() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| {
        acme.max_waiting = Some(0);
        acme.runtimes = Some(1);
    });
    let (a, b) = (evaluator(&pool, "acme/a"), evaluator(&pool, "acme/b"));
    at_once(&a).await;
    spy.on_call([Act::Never]);
    let runs = start(&spy, &a).await;
    at_once(&a).await;
    assert_exceeded(b.evaluate("").await, Bound::MaxWaiting, 0);
    runs.abort();
    sleep(SOON).await;
    at_once(&b).await;
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_so_many_evaluators() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.evaluators = Some(2));
    let refused = |error: Error| assert_exceeded(Err(error), Bound::Evaluators, 2);
    evaluator(&pool, "acme/a");
    let prepared = pool.prepare("acme/b", Spy::spec()).await.unwrap();
    refused(pool.register("acme/c", Spy::spec()).unwrap_err());
    refused(pool.evaluator("c", Spy::spec().tenant("acme")).unwrap_err());
    refused(pool.prepare("acme/c", Spy::spec()).await.err().unwrap());
    drop(prepared);
    let handle = pool.evaluator("acme/b", Spy::spec()).unwrap();
    // A new plugin is no evaluator more; one that comes from another tenant is.
    evaluator(&pool, "acme/a");
    evaluator(&pool, "other/a");
    refused(pool.register("other/a", Spy::spec().tenant("acme")).unwrap_err());
    assert_eq!(pool.info("other/a").unwrap().tenant, "other");
    drop(handle);
    pool.register("other/a", Spy::spec().tenant("acme")).unwrap();
    assert_eq!(pool.tenant("acme").unwrap().evaluators, 2);
    assert!(pool.remove("acme/a").await);
    evaluator(&pool, "acme/d");
}

#[tokio::test(start_paused = true)]
async fn bounds_change_while_the_pool_runs() {
    let spy = Spy::default();
    let pool = pool(&spy, |_| {});
    let [a, b, c] = ["acme/a", "acme/b", "acme/c"].map(|name| evaluator(&pool, name));
    let other = evaluator(&pool, "other/a");
    for evaluator in [&other, &a, &b, &c] {
        at_once(evaluator).await;
    }
    spy.on_call([LONG]);
    let runs = start(&spy, &a).await;
    pool.set_tenants(for_acme(|acme| acme.runtimes = Some(1))).unwrap();
    sleep(Duration::from_millis(1)).await;
    // What is unused went at once; what is in use was left alone.
    let states = ["acme/a", "acme/b", "acme/c", "other/a"].map(|name| state(&pool, name));
    assert_eq!(states, [RuntimeState::Live, RuntimeState::Cold, RuntimeState::Cold, RuntimeState::Live]);
    let waits = wait_behind(&b).await;
    pool.set_tenants(TenantSettings { default: bounds(|each| each.runtimes = Some(2)), ..Default::default() }).unwrap();
    timeout(SOON, waits).await.expect("it has room now").unwrap().unwrap();
    assert_eq!(pool.tenant("acme").unwrap().bounds.runtimes, Some(2));
    let out_of_range = for_acme(|acme| acme.instances = Some(0));
    let said = pool.set_tenants(out_of_range).unwrap_err().to_string();
    assert_eq!(said, r#"tenants.named."acme".instances is 0; it must be at least 1"#);
    assert_eq!(pool.tenant("acme").unwrap().bounds.runtimes, Some(2), "then nothing changes");
    runs.abort();
}

#[tokio::test(start_paused = true)]
async fn fresh_evaluations_and_their_spares_stay_within_the_bound() {
    let spy = Spy::default();
    let tenants = for_acme(|acme| acme.instances = Some(2));
    let pool = pool_with(&spy, tenants, |builder| builder.capacity(4));
    let fresh = |name| pool.register(name, Spy::spec().isolation(Isolation::Fresh)).unwrap();
    let (a, b) = (fresh("acme/a"), fresh("acme/b"));
    let calls: Vec<_> = (0..40).map(|at| call(if at % 2 == 0 { &a } else { &b })).collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    sleep(SOON).await;
    assert_eq!(spy.instances_live_max(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_at_its_bound_takes_no_turn_and_no_instance_from_those_who_wait_for_the_pools() {
    let spy = Spy::default();
    let tenants = for_acme(|acme| acme.instances = Some(1));
    let pool = pool_with(&spy, tenants, |builder| builder.capacity(3).max_instances(3).build_concurrency(4));
    let (acme, one, two) = (evaluator(&pool, "acme/a"), evaluator(&pool, "one/a"), evaluator(&pool, "two/a"));
    spy.on_call([Act::Never, LONG, Act::Never]);
    let _acme = start(&spy, &acme).await;
    let ends = start(&spy, &one).await;
    let _two = start(&spy, &two).await;
    // The pool has no instance left, and the eldest who wait are at a bound of their own.
    let _waits = [wait_behind(&acme).await, wait_behind(&acme).await];
    let next = wait_behind(&two).await;
    ends.await.unwrap().unwrap();
    timeout(SOON, next).await.expect("nobody else could use it").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn where_all_want_more_than_there_is_each_gets_its_weight_of_places_and_of_turns() {
    let spy = Spy::default();
    let tenants = for_acme(|acme| acme.weight = Some(3));
    let pool = pool_with(&spy, tenants, |builder| builder.capacity(4).max_instances(4).build_concurrency(4));
    let all: Vec<_> = ["acme", "other"]
        .iter()
        .flat_map(|tenant| (0..8).map(|at| format!("{tenant}/{at}")).collect::<Vec<_>>())
        .map(|name| evaluator(&pool, &name))
        .collect();
    spy.on_call((0..100_000).map(|_| Act::Slow(SOON)));
    let busy = |evaluator: Evaluator| async move { while evaluator.evaluate("").await.is_ok() {} };
    let tasks: Vec<_> = all.iter().map(|evaluator| tokio::spawn(busy(evaluator.clone()))).collect();
    sleep(SOON * 50).await;
    let done = |tenant: &str| pool.tenant(tenant).unwrap().usage.evaluations;
    let before = (done("acme"), done("other"));
    let mut held = 0;
    for _ in 0..100 {
        sleep(SOON * 2).await;
        held += pool.tenant("acme").unwrap().runtimes;
    }
    let (acme, other) = (done("acme") - before.0, done("other") - before.1);
    assert!((280..=320).contains(&held), "three of four places: {held}");
    assert!(acme * 10 >= other * 25 && acme * 10 <= other * 35, "three of four turns: {acme} and {other}");
    tasks.iter().for_each(JoinHandle::abort);
}
