//! A state on its way to a snapshot that fails, is paid for, and is tried again.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::advance;

use super::{anew::ASKS_AGAIN, *};
use crate::{
    error::ErrorKind,
    memory::{MemoryBudget, MemoryKind},
    turns::TenantId,
};

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
    let (mut state, charge) = (State::new(&[]), account.waiting(1 << 20));
    state.add_memory(&[1; 100]).unwrap();
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

/// The right to read an instance of it anew.
fn reads_anew(once: &Once) -> Reading<'_> {
    let Stage::Awaited(plain) = once.stage().clone() else { unreachable!() };
    let anew = once.anew.refreshes.turn(TenantId(1), Instant::now()).map(|turn| (turn, Instant::now()));
    Reading { once, plain, anew, pause: None }
}

/// How long it is until another is read.
fn pause(once: &Once) -> Duration {
    let now = nanos(once.anew.began.elapsed());
    Duration::from_nanos(once.anew.due.load(Ordering::Relaxed) - now)
}

#[test]
fn a_state_of_which_no_valid_module_comes_is_refused_at_once_in_its_words() {
    let once = once(None);
    let recorded = reads(&once, &MemoryAccount::unbounded(), None);
    let error = Error::invalid_plugin("its code would take 1 GiB");
    let told = InitState::Refused(error.to_string().into());
    once.attempt(1).unwrap().ended(Err(error)).unwrap();
    assert_eq!(once.told(), told);
    assert!(recorded.upgrade().is_none());
}

#[test]
fn what_is_to_be_compiled_takes_what_its_memories_hold() {
    let once = once(None);
    let recorded = reads(&once, &MemoryAccount::unbounded(), None).upgrade().unwrap();
    assert!(recorded.image() >= 100 && recorded.image() == recorded.state.image());
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_anew_is_tried_again_once_the_next_is_due_and_what_others_ended_after_a_minute() {
    const EVERY: Duration = Duration::from_hours(1);
    let account = MemoryAccount::unbounded();
    let (minute, second) = (Duration::from_mins(1), Duration::from_secs(1));
    let shortage = std::io::ErrorKind::OutOfMemory.into();
    for (error, then) in [
        (Error::invalid_plugin("no"), EVERY),
        (Error::build_timeout(second), EVERY),
        (Error::overloaded("no room", "others have it", &shortage), minute),
    ] {
        let once = once(Some(EVERY));
        let _waits = once.anew.wait();
        let recorded = reads(&once, &account, once.anew.refreshes.turn(TenantId(1), Instant::now()));
        once.attempt(1).unwrap().ended(Err(error)).expect("what there is stays");
        assert_eq!((pause(&once), once.told()), (then, InitState::Pending));
        assert!(recorded.upgrade().is_none());
    }
    // Forty times what it took, if that is longer.
    for (fails, took, then) in [
        (true, second, EVERY),
        (false, second, minute),
        (false, 2 * second, 80 * second),
        (true, 100 * second, 4000 * second),
    ] {
        let once = once(Some(EVERY));
        let reading = reads_anew(&once);
        assert!(reading.is_anew());
        advance(took).await;
        if fails {
            reading.failed();
        } else {
            drop(reading);
        }
        assert_eq!(pause(&once), then, "{fails} {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_read_anew_from_when_that_is_due_on_if_there_is_room_and_somebody_compiles_it() {
    let once = once(Some(Duration::from_mins(10)));
    let (refreshes, second) = (once.anew.refreshes.clone(), Duration::from_secs(1));
    let turn = |room| once.anew.turn(|| room);
    assert!(turn(true).is_none(), "none is due");
    let waits = once.anew.wait();
    once.anew.due_after(Instant::now(), second);
    advance(Duration::from_millis(999)).await;
    assert!(turn(true).is_none());
    advance(Duration::from_millis(1)).await;
    assert!(turn(false).is_none());
    let (held, since) = turn(true).unwrap();
    assert_eq!(since, Instant::now());
    drop(held);
    assert!(turn(true).is_none(), "one at a time");
    once.anew.due_after(since, Duration::ZERO);
    let other = refreshes.turn(TenantId(2), Instant::now()).unwrap();
    assert!(turn(true).is_none());
    drop(other);
    advance(ASKS_AGAIN.saturating_sub(Duration::from_nanos(1))).await;
    assert!(turn(true).is_none(), "it has just asked");
    advance(Duration::from_nanos(1)).await;
    drop(turn(true).unwrap());
    once.anew.due_after(Instant::now(), Duration::ZERO);
    drop(waits);
    assert!(turn(true).is_none(), "nobody would compile it");
}

#[tokio::test]
async fn whoever_waits_is_told_of_what_is_read_from_then_on() {
    let once = once(None);
    once.anew.tell();
    let mut waits = once.anew.wait();
    assert!((&mut waits).now_or_never().is_none());
    once.anew.tell();
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_refused_if_it_is_the_first_and_else_tried_again() {
    let (account, hour) = (MemoryAccount::unbounded(), Duration::from_hours(1));
    let awaited = || once(Some(hour));
    let (first, again, well) = (awaited(), awaited(), awaited());
    first.next_is_read().unwrap().done(Err("it is too large".into()), &account);
    assert_eq!(first.told(), InitState::Refused("it is too large".into()));
    reads_anew(&again).done(Err("it is too large".into()), &account);
    assert_eq!((again.told(), pause(&again)), (InitState::Pending, hour));
    assert!(well.attempt(1).is_none());
    well.next_is_read().unwrap().done(Ok((State::new(&[]), Initialised::default())), &account);
    assert!(well.attempt(1).is_some() && [first, well].iter().all(|once| once.next_is_read().is_none()));
}

#[tokio::test(start_paused = true)]
async fn what_is_old_is_read_anew_if_there_is_room_for_another_as_large() {
    let engine = wasmtime::Engine::default();
    let module = wat::parse_str(r#"(module (memory (export "memory") 1))"#).unwrap();
    let module = wasmtime::Module::new(&engine, module).unwrap();
    for (limit, is_read) in [(199, false), (200, true)] {
        let budget = MemoryBudget::new(limit);
        let once = once(Some(Duration::from_mins(1)));
        let Stage::Awaited(plain) = once.stage().clone() else { unreachable!() };
        *once.stage() = Stage::Made(Some(plain));
        once.awaits.store(false, Ordering::Relaxed);
        once.made.store(Some(Arc::new(Snapshot {
            ready: Linker::new(&engine).instantiate_pre(&module).unwrap(),
            memory: module.get_export_index("memory").unwrap(),
            host: Arc::default(),
            read: Instant::now(),
            code: InUse::alone(module.clone(), budget.charge(MemoryKind::Code, 100)),
            account: MemoryAccount::of_tenant(&budget, TenantId(1)),
        })));
        let _waits = once.read_anew().unwrap();
        assert!(once.next_is_read().is_none() && once.told() == InitState::Once, "it is not old");
        once.anew.due_after(Instant::now(), Duration::ZERO);
        assert_eq!(once.next_is_read().is_some_and(|reading| reading.is_anew()), is_read, "{limit}");
    }
}
