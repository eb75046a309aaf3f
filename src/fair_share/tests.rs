//! Shares of a simulated processor.

use std::collections::HashMap;

use tokio::task::JoinSet;

use super::*;

/// How long each tenant had a processor for when all together had one for a second. Each has so many callers, of which
/// each takes so many microseconds, again and again.
async fn shares(share: FairShare, tenants: impl IntoIterator<Item = (u64, u64, u64)>) -> HashMap<u64, u64> {
    let (had, mut callers) = (Arc::<Mutex<HashMap<u64, u64>>>::default(), JoinSet::new());
    // Until all are there.
    let first = share.acquire(TenantId(0)).await;
    for (tenant, count, takes) in tenants {
        for _ in 0..count {
            let (share, had) = (share.clone(), had.clone());
            callers.spawn(async move {
                loop {
                    let mut permit = share.acquire(TenantId(tenant)).await;
                    permit.hand_on(Some(Duration::from_micros(takes)));
                    let mut had = had.lock().unwrap();
                    *had.entry(tenant).or_default() += takes;
                    if had.values().sum::<u64>() > 1_000_000 {
                        return;
                    }
                }
            });
        }
    }
    yield_now().await;
    drop(first);
    callers.join_next().await;
    callers.shutdown().await;
    Arc::into_inner(had).unwrap().into_inner().unwrap()
}

fn free_and_lost(share: &FairShare) -> (usize, usize) {
    let state = share.state();
    (state.free, state.lost)
}

#[tokio::test(start_paused = true)]
async fn each_of_fifty_tenants_has_a_fiftieth_of_the_time_whatever_one_of_them_asks_for() {
    for (callers, takes) in [(1000, 20), (200, 1000), (1000, 1), (1, 1000)] {
        let others = (1..50).map(|tenant| (tenant, 1, 20));
        let had = shares(FairShare::new(1), others.chain([(50, callers, takes)])).await;
        assert_eq!(had.len(), 50);
        for (tenant, had) in had {
            assert!((18_000..=22_000).contains(&had), "{callers} of {takes}: {tenant} had {had}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_beside_nobody_has_all_of_it() {
    let had = shares(FairShare::new(2), [(1, 3, 10)]).await;
    assert!(had[&1] > 1_000_000);
}

#[tokio::test(start_paused = true)]
async fn who_has_had_more_waits_for_those_who_will_ask_again_and_never_for_itself() {
    let share = FairShare::new(1);
    let began = Instant::now();
    let takes = async |tenant, micros| {
        share.acquire(TenantId(tenant)).await.hand_on(Some(Duration::from_micros(micros)));
        began.elapsed()
    };
    for _ in 0..10 {
        assert_eq!(takes(1, 1000).await, Duration::ZERO, "there is nobody else");
    }
    for tenant in [2, 3, 3] {
        assert_eq!(takes(tenant, 1).await, Duration::ZERO, "it has had less");
    }
    assert_eq!(takes(3, 1000).await, Duration::ZERO);
    assert!(takes(3, 1).await >= AGAIN, "the second may ask again");
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_kept_is_replaced_after_a_while_and_then_is_one_no_more() {
    let share = FairShare::new(1);
    let began = Instant::now();
    let kept = share.acquire(TenantId(1)).await;
    let replaced = share.acquire(TenantId(2)).await;
    assert!(began.elapsed() >= LONGEST_WAIT && began.elapsed() < 2 * LONGEST_WAIT);
    drop(kept);
    assert_eq!(free_and_lost(&share), (0, 0), "the other is in its stead");
    drop(replaced);
    assert_eq!(free_and_lost(&share), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn no_permit_is_replaced_while_permits_are_handed_on_however_long_one_waits() {
    let share = FairShare::new(1);
    let mut callers = JoinSet::new();
    for tenant in 0..5 {
        let share = share.clone();
        callers.spawn(async move {
            let permit = share.acquire(TenantId(tenant)).await;
            tokio::time::sleep(LONGEST_WAIT * 2 / 3).await;
            drop(permit);
        });
    }
    callers.join_all().await;
    assert_eq!(free_and_lost(&share), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_much_goes_on_only_once_all_with_earlier_turns_have_had_them() {
    let share = FairShare::new(1);
    let (order, mut callers) = (Arc::<Mutex<Vec<u64>>>::default(), JoinSet::new());
    let first = share.acquire(TenantId(0)).await;
    // A hundred callers of one; the one of another yields after each turn.
    for tenant in std::iter::repeat_n(1, 100).chain([2]) {
        let (share, order) = (share.clone(), order.clone());
        callers.spawn(async move {
            for _ in 0..3 {
                let mut permit = share.acquire_after_others(TenantId(tenant)).await;
                permit.hand_on(Some(Duration::from_micros(100)));
                order.lock().unwrap().push(tenant);
                yield_now().await;
            }
        });
    }
    yield_now().await;
    drop(first);
    callers.join_all().await;
    let order = order.lock().unwrap();
    assert_eq!(order.iter().take(12).filter(|tenant| **tenant == 2).count(), 3, "{:?}", &order[..20]);
}
