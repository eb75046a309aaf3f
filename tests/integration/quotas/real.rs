//! On the real engine.

use std::time::Duration;

use super::{assert_exceeded, bounds};
use crate::support::{patient, settings, wasm};
use evalpool::{
    Bound, Error, EvaluatorPool, Isolation, PoolBuilder, Source, Spec,
    config::{EngineKind, TenantSettings},
};

const MIB: u64 = 1 << 20;

fn pool(tenants: TenantSettings, set: impl FnOnce(PoolBuilder) -> PoolBuilder) -> EvaluatorPool {
    let builder = PoolBuilder::from(settings(EngineKind::Direct)).limits(patient()).tenants(tenants);
    set(builder).build().unwrap()
}

fn acme(set: impl FnOnce(&mut evalpool::config::TenantBounds)) -> TenantSettings {
    TenantSettings { named: [("acme".to_owned(), bounds(set))].into(), ..TenantSettings::default() }
}

/// Spins until it is stopped, or grows to 8 MiB.
fn plugin() -> Source {
    Source::bytes(wasm(
        r#"(module
            (memory 1)
            (func (export "spin") (loop $again (br $again)))
            (func (export "grow") (if (i32.lt_u (memory.size) (i32.const 128))
                (then (drop (memory.grow (i32.sub (i32.const 128) (memory.size)))))))
            (func (export "run")))"#,
    ))
}

#[tokio::test]
async fn guests_of_a_tenant_get_so_much_time_and_its_calls_wait_for_more() {
    let pool = pool(acme(|acme| acme.cpu_per_second = Some(Duration::from_millis(10))), |builder| builder);
    let short = Duration::from_millis(500);
    let spec = || Spec::new(plugin()).entry_point("spin").exec_timeout(short);
    let (spins, other) = (pool.register("acme/a", spec()).unwrap(), pool.register("other/a", spec()).unwrap());
    assert_eq!(spins.evaluate("").await.unwrap_err().kind(), "exec_timeout");
    // Half a second was used, and a burst of 50 ms was left.
    let error = spins.entry_point("run").evaluate("").await.unwrap_err();
    let Error::QuotaExceeded { bound, retry_after, .. } = &error else { panic!("{error}") };
    assert_eq!(*bound, Bound::CpuPerSecond);
    assert!(*retry_after > Duration::from_secs(20) && *retry_after < Duration::from_hours(1), "{retry_after:?}");
    assert_eq!(error.to_string(), r#"the tenant "acme" has used up its bound: cpu_per_second = 10 ms"#);
    assert_eq!(other.evaluate("").await.unwrap_err().kind(), "exec_timeout");
    other.entry_point("run").evaluate("").await.unwrap();
    pool.set_tenants(TenantSettings::default()).unwrap();
    spins.entry_point("run").evaluate("").await.unwrap();
}

#[tokio::test]
async fn what_initialisers_run_is_charged_too() {
    let pool = pool(acme(|acme| acme.cpu_per_second = Some(Duration::from_millis(1))), |builder| builder);
    let slow = r#"(module (func $start (local i32)
        (loop $again (br_if $again (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 1))) (i32.const 30000000)))))
        (start $start) (func (export "run")))"#;
    let slow = pool.register("acme/slow", Spec::new(Source::bytes(wasm(slow))).isolation(Isolation::Reuse)).unwrap();
    let mut calls = 0;
    while slow.evaluate("").await.is_ok() {
        slow.unload().await;
        calls += 1;
        assert!(calls < 10_000, "each runs for milliseconds");
    }
    assert_eq!(slow.evaluate("").await.unwrap_err().kind(), "quota_exceeded");
}

#[tokio::test]
async fn code_that_tenants_share_is_charged_to_each_in_full() {
    let pool = pool(TenantSettings::default(), |builder| builder);
    let held = |tenant: &str| pool.tenant(tenant).unwrap().memory_bytes;
    let run = || Spec::new(plugin()).entry_point("run").isolation(Isolation::Reuse);
    let (a, b) = (pool.register("a", run()).unwrap(), pool.register("b", run()).unwrap());
    a.evaluate("").await.unwrap();
    let alone = held("a");
    assert!(alone > 65_536, "{alone}");
    b.evaluate("").await.unwrap();
    assert_eq!((held("a"), held("b")), (alone, alone));
    b.close().await;
    assert_eq!((held("a"), held("b")), (alone, 0));
}

#[tokio::test]
async fn a_tenant_holds_so_many_bytes_and_gives_up_its_own_for_more() {
    let pool = pool(acme(|acme| acme.memory = Some(10 * MIB)), |builder| builder);
    let spec = |source: Source| Spec::new(source).entry_point("grow").isolation(Isolation::Reuse);
    let [a, b] = ["acme/a", "acme/b"].map(|name| pool.register(name, spec(plugin())).unwrap());
    let other = pool.register("other/a", spec(plugin())).unwrap();
    for evaluator in [&other, &a] {
        evaluator.evaluate("").await.unwrap();
    }
    let held = |tenant: &str| pool.tenant(tenant).unwrap().memory_bytes;
    assert!((8 * MIB..10 * MIB).contains(&held("acme")));
    // It would hold 16: what `a` does not use goes once the guest has grown.
    b.evaluate("").await.unwrap();
    let mut calls = 0;
    while held("acme") > 10 * MIB {
        tokio::time::sleep(Duration::from_millis(10)).await;
        calls += 1;
        assert!(calls < 6000, "{}", held("acme"));
    }
    assert!(held("other") > 8 * MIB, "another's is its own");
    b.evaluate("").await.unwrap();
    let big = format!(r#"(module (memory 192) (data (i32.const 0) "{}") (func (export "grow")))"#, "x".repeat(100));
    let too_big = pool.register("acme/big", spec(Source::bytes(wasm(&big)))).unwrap();
    let limit = 10 * MIB;
    assert_exceeded(too_big.evaluate("").await, Bound::Memory, limit);
}
