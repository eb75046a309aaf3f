//! A state on its way to a snapshot that fails, is paid for, and is tried again.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::time::advance;

use super::*;
use crate::{error::ErrorKind, memory::MemoryBudget, turns::TenantId};

fn once(every: Option<Duration>) -> Once {
    let recorder = Recorder { globals: Vec::new(), memories: Vec::new() };
    Once::new(Ok(recorder), &Bytes::from_static(b"plugin"), every, TenantId(1), Refreshes::new())
}

/// It was read, and is charged here.
fn reads(once: &Once, account: &MemoryAccount, turn: Option<Turn>) -> Weak<Recorded> {
    let plain = match &*once.stage() {
        Stage::Awaited(plain) | Stage::Made(Some(plain)) => plain.clone(),
        _ => unreachable!(),
    };
    let (state, charge) = (State::new(&[]), account.waiting(1 << 20));
    let recorded = Recorded { plain, state, host: Arc::default(), read: Instant::now(), turn, _charge: charge };
    let recorded = Arc::new(recorded);
    let weak = Arc::downgrade(&recorded);
    if recorded.turn.is_some() {
        once.anew.hand_on(&recorded);
    } else {
        *once.stage() = Stage::Read(recorded);
    }
    weak
}

#[test]
fn a_state_that_cannot_be_compiled_is_given_up_with_a_reason_and_given_back() {
    let (budget, once) = (MemoryBudget::new(u64::MAX), once(None));
    let account = MemoryAccount::of_tenant(&budget, TenantId(1));
    let recorded = reads(&once, &account, None);
    assert_eq!((budget.used(), budget.held_by(TenantId(1))), (1 << 20, 1 << 20), "its tenant holds it as well");
    let fails = |error: Error| once.attempt(1).unwrap().ended(Err(error)).unwrap_err().kind();
    for _ in 0..2 * 3 {
        let shortage = std::io::ErrorKind::OutOfMemory.into();
        assert_eq!(fails(Error::overloaded("no room", "others have it", &shortage)), ErrorKind::Overloaded);
    }
    for _ in 0..2 {
        fails(Error::build_timeout(Duration::from_secs(1)));
        assert_eq!(once.told(), InitState::Pending);
    }
    let last = Error::build_timeout(Duration::from_secs(1));
    let why = format!("it could not be compiled: {last}");
    fails(last);
    assert_eq!(once.told(), InitState::Refused(why.into()));
    assert!(once.attempt(1).is_none() && recorded.upgrade().is_none());
    assert_eq!((budget.used(), budget.held_by(TenantId(1))), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_is_always_due_leaves_others_their_turns() {
    let account = MemoryAccount::unbounded();
    let once = once(Some(Duration::from_millis(1)));
    let turn = |at| once.anew.refreshes.turn(TenantId(1), at);
    let _waits = once.anew.wait();
    let recorded = reads(&once, &account, turn(Instant::now()));
    let attempt = once.attempt(2).unwrap();
    advance(Duration::from_secs(1)).await;
    assert!(turn(Instant::now()).is_none());
    drop(attempt);
    assert!(recorded.upgrade().is_none(), "it is not compiled twice");
    let (due, now) = (once.anew.due.load(Ordering::Relaxed), Instant::now());
    assert_eq!(due, nanos(now.duration_since(once.anew.began) + Duration::from_secs(80)));
    assert!(turn(now).is_none(), "it is not paid for");
    advance(Duration::from_secs(39)).await;
    assert!(turn(Instant::now()).is_some(), "long before it is due itself");
}

#[tokio::test(start_paused = true)]
async fn attempts_that_others_end_again_and_again_come_ever_later() {
    let once = once(Some(Duration::from_mins(10)));
    let pauses: Vec<_> = (0..6).map(|_| once.anew.again().as_secs() / 60).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_anew_is_given_up_with_its_turn_when_nobody_is_left_to_compile_it() {
    let account = MemoryAccount::unbounded();
    let once = once(Some(Duration::from_mins(10)));
    let turn = || once.anew.refreshes.turn(TenantId(1), Instant::now());
    let mut waits = once.anew.wait();
    let recorded = reads(&once, &account, turn());
    (&mut waits).await;
    let next = once.anew.wait();
    drop(waits);
    assert!(turn().is_none() && recorded.upgrade().is_some(), "it waits for a compile slot");
    drop(next);
    assert!(recorded.upgrade().is_none() && once.attempt(1).is_none());
    assert_ne!(once.anew.due.load(Ordering::Relaxed), u64::MAX, "another is read later");
    let recorded = reads(&once, &account, turn());
    assert!(recorded.upgrade().is_none(), "nobody waits any more by the time that it is read");
    assert!(turn().is_some());
}
