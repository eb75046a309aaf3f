//! What becomes of those who wait when a guard ends.

use super::{
    super::{
        Registry,
        state::tests::{Fake, LIMITS, revision},
    },
    *,
};
use crate::{background::Background, memory::MemoryBudget, metrics::Metrics};

#[test]
fn those_that_remain_are_counted() {
    let (held, gone) = watch::channel(false);
    let gone = Gone(vec![gone]);
    assert_eq!(gone.remaining(), 1);
    drop(held);
    assert_eq!(gone.remaining(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_build_that_ends_without_an_outcome_is_told_and_the_next_one_tries_again() {
    let budget = MemoryBudget::new(u64::MAX);
    let registry: Registry<Fake> = Registry::new(LIMITS, budget, Metrics::new(), Background::default());
    for _ in 0..2 {
        let (deadline, within) = (Instant::now() + Duration::from_secs(9), Duration::ZERO);
        let start = |ticket| {
            assert_eq!(registry.held_by(revision(1).tenant).waiting, 1);
            drop(ticket);
        };
        let leased = registry.lease(revision(1), &mut None, deadline, within, true, start).await;
        assert!(matches!(leased, Err(Error::Internal { .. })), "{leased:?}");
    }
    assert_eq!(registry.counts(), crate::registry::Counts::default());
}
