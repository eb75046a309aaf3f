//! Ends a compile from another thread.

use std::{
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::param::clock_ticks_per_second;
use tokio::sync::Notify;

use super::Terms;

/// A module whose worker got less than this part of its time as processor time was not what took so long.
const LEAST_WORK: u32 = 20;

/// Why a compile was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Why {
    /// Its time was over.
    Timeout,
    /// Nobody wants it any more.
    Unwanted,
}

/// A worker's process. Its pipes are elsewhere.
pub(super) type Process = Arc<Mutex<Child>>;

/// What ends the compiles of one plugin: whoever waits for them has it, and the thread that does the work.
#[derive(Default)]
pub(in super::super) struct Stop {
    state: Mutex<State>,
    /// Tells whoever waits for something else than a worker.
    stopped: Notify,
}

#[derive(Default)]
struct State {
    why: Option<Why>,
    /// The worker that is at work.
    worker: Option<Process>,
    begun: Option<Begun>,
}

/// The module that a worker has begun with, and the processor time that it had used before.
#[derive(Clone, Copy)]
struct Begun {
    terms: Terms,
    used: Duration,
}

impl Stop {
    /// Ends the work now and whatever would follow. Says which module a worker was busy with, if any: not when it had no
    /// processor, or was stopped. The first reason counts.
    pub(in super::super) fn stop(&self, why: Why) -> Option<Terms> {
        self.stopped.notify_one();
        let mut state = self.state();
        state.why.get_or_insert(why);
        let process = state.worker.take()?;
        let worked = used(&process);
        kill(&process);
        let Begun { terms, used } = state.begun.take()?;
        was_busy(worked?.saturating_sub(used), terms.within).then_some(terms)
    }

    /// Ends once it has been stopped. For one to wait at a time.
    pub(in super::super) async fn stopped(&self) {
        self.stopped.notified().await;
    }

    /// The worker has compiled: what takes long from now on is not the module's fault.
    pub(super) fn compiled(&self) {
        self.state().begun = None;
    }

    pub(super) fn why(&self) -> Option<Why> {
        self.state().why
    }

    /// From here on, `stop` kills this worker. False: it has been called before.
    pub(super) fn watch(&self, process: &Process) -> bool {
        let mut state = self.state();
        if state.why.is_some() {
            return false;
        }
        state.worker = Some(process.clone());
        state.begun = None;
        true
    }

    pub(super) fn begun(&self, terms: Terms) {
        let mut state = self.state();
        let used = state.worker.as_ref().and_then(used).unwrap_or_default();
        state.begun = Some(Begun { terms, used });
    }

    /// The worker has nothing to do with this plugin any more.
    pub(super) fn forget(&self) {
        self.state().worker = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn was_busy(worked: Duration, within: Duration) -> bool {
    worked >= within / LEAST_WORK
}

/// The processor time that a process has used.
fn used(process: &Process) -> Option<Duration> {
    let number = process.lock().unwrap_or_else(PoisonError::into_inner).id();
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The name comes in parentheses, and may hold anything. From the state on, the time of its own and that of the system for it are 12th and 13th.
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ticks = fields.skip(11).take(2).map_while(|field| field.parse::<u64>().ok()).sum::<u64>();
    Some(Duration::from_millis(ticks.saturating_mul(1000) / clock_ticks_per_second().max(1)))
}

/// Neither blocks nor waits for the process to end: the thread that reads from it does.
pub(super) fn kill(process: &Process) {
    // It cannot fail for a child of ours that was not waited for, and does nothing to one that was.
    let _ = process.lock().unwrap_or_else(PoisonError::into_inner).kill();
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn who_had_no_processor_is_not_to_blame() {
        let within = Duration::from_secs(10);
        assert!(!was_busy(Duration::from_millis(499), within));
        assert!(was_busy(Duration::from_millis(500), within));
    }

    #[test]
    fn the_processor_time_of_a_process_is_what_it_has_used() {
        let start = |script: &str| {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            Arc::new(Mutex::new(child))
        };
        let (sleeps, works) = (start("exec sleep 600"), start("while :; do :; done"));
        while used(&works).unwrap() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        assert!(used(&sleeps).unwrap() < Duration::from_millis(50));
        for process in [sleeps, works] {
            kill(&process);
            process.lock().unwrap().wait().unwrap();
        }
    }

    #[test]
    fn a_module_that_a_worker_was_busy_with_is_named_once_it_is_stopped_and_no_other() {
        let works = "at=0; while [ $at -lt 10000000 ]; do at=$((at + 1)); done";
        let child = Command::new("sh").args(["-c", works]).spawn().unwrap();
        let process = Arc::new(Mutex::new(child));
        let until = |time| {
            while used(&process).unwrap() < time {
                std::thread::yield_now();
            }
        };
        let watched = || {
            let stop = Stop::default();
            assert!(stop.watch(&process));
            stop
        };
        let (short, long) = (Terms::within(Duration::from_millis(200)), Terms::within(Duration::from_hours(1)));
        let (idle, compiled, forgotten, free, busy) = (watched(), watched(), watched(), watched(), watched());
        for stop in [&compiled, &forgotten] {
            stop.begun(short);
        }
        free.begun(long);
        busy.begun(short);
        until(used(&process).unwrap() + Duration::from_millis(20));
        compiled.compiled();
        forgotten.forget();
        assert!(forgotten.stop(Why::Timeout).is_none() && process.lock().unwrap().try_wait().unwrap().is_none());
        assert_eq!(busy.stop(Why::Timeout).unwrap().within, short.within);
        for (stop, why) in [(idle, Why::Unwanted), (compiled, Why::Timeout), (free, Why::Timeout), (busy, Why::Timeout)]
        {
            assert!(stop.stop(why).is_none());
            assert!(stop.stop(Why::Unwanted).is_none() && stop.why() == Some(why), "the first reason counts");
            assert!(!stop.watch(&process));
        }
        process.lock().unwrap().wait().unwrap();
    }
}
