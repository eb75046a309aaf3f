//! Snapshots of plugins that are initialised once, made behind the first calls.
//!
//! The runtime is published before: its callers do not wait twice. Then a task of the background runtime looks for a compile
//! slot that no build wants, and has the engine compile, with what others leave of the processors. A build that wants the slot
//! gets it at once, if the engine can end a compile; the snapshot is tried again later, and rather later than often. It stands
//! in no line, so that no build waits behind it.
//!
//! Where initialisers drew time or randomness, the engine has an instance run them again from time to time, within a bound of
//! its own on what that takes of the processors; the task then compiles what came of it in the same way.
//!
//! If the background runtime ends, so does the task: what was read for it is given up, and the snapshot that is there stays
//! until the plugin is built anew.
//!
//! Nothing waits for the task: while it waits itself, it holds nothing of the runtime, and while the engine compiles, a close
//! ends that. An engine that cannot be interrupted keeps the runtime's place and the slot until it has ended, as with a build.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{
    Compiler,
    slots::{BuildSlots, Renounce},
};
use crate::{
    engine::{BoxFuture, InitState, MOST_SNAPSHOT_FAILURES, NO_INITIALISERS},
    error::ErrorKind,
    runtime::{Runtime, WeakRuntime},
};

/// How long the first pause is before a snapshot is tried again. Each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const MOST_PAUSE: Duration = Duration::from_mins(1);

impl Compiler {
    /// Has the snapshot of a runtime made that was just published, if its plugin is to have one.
    pub(crate) fn snapshot(&self, runtime: &Runtime) {
        match runtime.program().compiled.init_state() {
            InitState::Pending => {
                let making = Making {
                    slots: self.slots.clone(),
                    interrupts: self.engine.interrupts_compiles(),
                    runtime: runtime.downgrade(),
                };
                self.background.spawn(making.run());
            }
            InitState::Refused(why) => refused(runtime, &why),
            InitState::Each | InitState::Once => {}
        }
    }
}

fn refused(runtime: &Runtime, why: &str) {
    runtime.program().report.refused(why, why == NO_INITIALISERS);
}

struct Making {
    slots: Arc<BuildSlots>,
    interrupts: bool,
    runtime: WeakRuntime,
}

/// What came of an attempt.
enum Attempt {
    Done,
    /// Nobody needs it any more.
    Retired,
    /// Somebody else wants what it takes.
    Later,
    Failed,
}

/// When it is tried again.
struct Again {
    pause: Duration,
    failures: u32,
}

impl Default for Again {
    fn default() -> Self {
        Self { pause: PAUSE, failures: 0 }
    }
}

impl Again {
    /// How long after this attempt; `None` once so many have failed.
    fn after(&mut self, failed: bool) -> Option<Duration> {
        let pause = self.pause;
        self.pause = (pause * 2).min(MOST_PAUSE);
        self.failures += u32::from(failed);
        (self.failures < MOST_SNAPSHOT_FAILURES).then_some(pause)
    }
}

impl Making {
    async fn run(self) {
        // Before there is anything to compile, if no instance could be read in time yet.
        let mut read = self.read_anew();
        let mut goes_on = self.make().await;
        if read.is_none() {
            read = self.read_anew();
        }
        while goes_on && let Some(waits) = &mut read {
            waits.await;
            goes_on = self.make().await;
            // Only then the one before it goes: whatever ends this task in between, what was read is given up.
            read = self.read_anew();
        }
    }

    /// What to wait for, if there is a runtime whose first snapshot, or another, is to be made later.
    fn read_anew(&self) -> Option<BoxFuture<'static, ()>> {
        self.runtime.upgrade()?.program().compiled.read_anew()
    }

    /// Whether another may be made for this runtime later.
    async fn make(&self) -> bool {
        let mut again = Again::default();
        loop {
            let failed = match self.attempt().await {
                Attempt::Done => return true,
                Attempt::Retired => return false,
                Attempt::Later => false,
                Attempt::Failed => true,
            };
            let Some(pause) = again.after(failed) else { return true };
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self) -> Attempt {
        let Some(runtime) = self.runtime.upgrade() else { return Attempt::Retired };
        let wanted = Arc::new(Notify::new());
        let renounce: Arc<Renounce> = {
            let wanted = wanted.clone();
            Arc::new(move || {
                wanted.notify_one();
                true
            })
        };
        let Some(slot) = self.slots.idle(self.interrupts.then_some(renounce)) else { return Attempt::Later };
        let retired = async {
            // What cannot be ended keeps its slot.
            if self.interrupts { runtime.retired().await } else { pending().await }
        };
        let done = tokio::select! {
            biased;
            () = retired => Attempt::Retired,
            () = wanted.notified() => Attempt::Later,
            made = runtime.program().compiled.snapshot() => match made {
                Ok(()) => Attempt::Done,
                Err(error) => {
                    let evaluator = &*runtime.program().report.of.evaluator;
                    tracing::debug!(evaluator, error = %error.chain(), "a snapshot is not made yet");
                    if error.kind() == ErrorKind::Overloaded { Attempt::Later } else { Attempt::Failed }
                }
            },
        };
        drop(slot);
        if let InitState::Refused(why) = runtime.program().compiled.init_state() {
            refused(&runtime, &why);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_twice_the_one_before_up_to_the_longest() {
        let mut again = Again::default();
        let mut pauses: Vec<Duration> = (0..12).map(|_| again.after(false).unwrap()).collect();
        assert_eq!((pauses.pop(), pauses.pop()), (Some(MOST_PAUSE), Some(MOST_PAUSE)));
        let twice: Vec<Duration> = (0..10).map(|at| PAUSE * 2_u32.pow(at)).collect();
        assert_eq!(pauses, twice);
    }

    #[test]
    fn it_is_given_up_after_so_many_failures_whatever_came_between() {
        let mut again = Again::default();
        for _ in 1..MOST_SNAPSHOT_FAILURES {
            assert!(again.after(true).is_some());
            assert!(again.after(false).is_some());
        }
        assert_eq!(again.after(true), None);
    }
}
