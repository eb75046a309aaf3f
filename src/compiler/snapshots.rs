//! Snapshots of plugins that are initialised once, made behind the first calls.
//!
//! The runtime is published before: its callers do not wait twice. Then a task of the background runtime waits for its
//! tenant's turn and for a compile slot that no build wants, and has the engine compile. A build that wants the slot gets it
//! at once, if the engine can end a compile; the snapshot is tried again later, and rather later than often.
//!
//! Nothing waits for the task: while it waits itself, it holds nothing of the runtime, and while the engine compiles, a close
//! ends that. An engine that cannot be interrupted keeps the runtime's place until it has ended, as with a build.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};

use super::{
    Compiler,
    slots::{BuildSlots, Renounce},
};
use crate::{
    engine::{FairShare, InitState},
    runtime::{Runtime, WeakRuntime},
    turns::TenantId,
};

/// How long the first pause is before a snapshot is tried again. Each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const MOST_PAUSE: Duration = Duration::from_mins(1);

impl Compiler {
    /// Has the snapshot of a runtime made that was just published, if its plugin is to have one.
    pub(crate) fn snapshot(&self, runtime: &Runtime, share: Option<FairShare>, tenant: TenantId) {
        match runtime.program().compiled.init_state() {
            InitState::Pending => {
                let making = Making {
                    slots: self.slots.clone(),
                    interrupts: self.engine.interrupts_compiles(),
                    share,
                    tenant,
                    runtime: runtime.downgrade(),
                };
                self.background.spawn(making.run());
            }
            InitState::Refused(why) => refused(runtime, &why),
            InitState::Each | InitState::Once => {}
        }
    }
}

/// Said once for each runtime.
fn refused(runtime: &Runtime, why: &str) {
    let (evaluator, plugin) = (&*runtime.program().report.of.evaluator, runtime.program().digest);
    tracing::info!(evaluator, %plugin, "initialisers run in each instance, not once: {why}");
}

struct Making {
    slots: Arc<BuildSlots>,
    interrupts: bool,
    share: Option<FairShare>,
    tenant: TenantId,
    runtime: WeakRuntime,
}

impl Making {
    async fn run(self) {
        let mut pause = PAUSE;
        while !self.attempt().await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    /// Whether there is nothing more to do.
    async fn attempt(&self) -> bool {
        let building = match &self.share {
            Some(share) => Some(share.begin_build(self.tenant).await),
            None => None,
        };
        let wanted = Arc::new(Notify::new());
        let renounce: Arc<Renounce> = {
            let wanted = wanted.clone();
            Arc::new(move || {
                wanted.notify_one();
                true
            })
        };
        let slot = self.slots.idle(self.interrupts.then_some(renounce)).await;
        let Some(runtime) = self.runtime.upgrade() else { return true };
        let began = Instant::now();
        let done = tokio::select! {
            biased;
            () = runtime.retired() => true,
            () = wanted.notified() => false,
            made = runtime.program().compiled.snapshot() => match made {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "a snapshot is not made yet");
                    false
                }
            },
        };
        if let Some(building) = building {
            building.built(began.elapsed());
        }
        drop(slot);
        if let InitState::Refused(why) = runtime.program().compiled.init_state() {
            refused(&runtime, &why);
        }
        done
    }
}
