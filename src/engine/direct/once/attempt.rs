//! One attempt to compile what was read, and what comes of it.

use std::sync::{Arc, atomic::Ordering};

use tokio::time::Instant;

use super::{Once, Recorded, Stage};
use crate::{
    engine::MOST_SNAPSHOT_FAILURES,
    error::{Error, ErrorKind},
};

/// One attempt to compile what was read. Dropping it ends the attempt: one for what was read anew is not made twice.
pub(in super::super) struct Attempt<'a> {
    pub(super) once: &'a Once,
    pub(super) recorded: Arc<Recorded>,
    pub(super) began: Instant,
    /// How many processors it may use.
    pub(super) width: u32,
}

impl Attempt<'_> {
    pub(in super::super) fn recorded(&self) -> Arc<Recorded> {
        self.recorded.clone()
    }

    /// What came of it, for whoever would try again.
    pub(in super::super) fn ended(self, made: Result<(), Error>) -> Result<(), Error> {
        let (once, recorded) = (self.once, &self.recorded);
        match made {
            Err(error) if recorded.turn.is_some() => {
                tracing::debug!(error = %error.chain(), "a snapshot is not made anew yet");
                if error.kind() != ErrorKind::Overloaded {
                    once.anew.give_up(recorded, once.anew.every);
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::InvalidPlugin => {
                self.refuse(error.to_string());
                Ok(())
            }
            Err(error) if error.kind() != ErrorKind::Overloaded => {
                if once.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_SNAPSHOT_FAILURES {
                    self.refuse(format!("it could not be compiled: {error}"));
                }
                Err(error)
            }
            made => made,
        }
    }

    /// Initialisers run in each instance, unless it was compiled after all. The state is given back.
    fn refuse(&self, why: String) {
        let mut stage = self.once.stage();
        if matches!(&*stage, Stage::Read(current) if Arc::ptr_eq(current, &self.recorded)) {
            *stage = Stage::Refused(why.into());
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(turn) = &self.recorded.turn {
            let now = Instant::now();
            turn.charge(now.saturating_duration_since(self.began).saturating_mul(self.width), now);
            self.once.anew.leave(&self.recorded);
        }
    }
}
