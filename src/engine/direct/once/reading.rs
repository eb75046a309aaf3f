//! The right to read an instance whose initialisers have run, and what comes of it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Initialised, MemoryAccount, Once, Plain, Recorded, Stage, State, Turn};

/// The right to read the next instance. If it is dropped without, another is read later.
pub(in super::super) struct Reading<'a> {
    pub(super) once: &'a Once,
    pub(super) plain: Arc<Plain>,
    /// That it is read anew, and since when.
    pub(super) anew: Option<(Turn, Instant)>,
    /// When it is tried again, if not as after others ended it.
    pub(super) pause: Option<Duration>,
}

impl Reading<'_> {
    /// Whether there is a snapshot, in place of which another is to be made.
    pub(in super::super) fn is_anew(&self) -> bool {
        self.anew.is_some()
    }

    pub(in super::super) fn of(&self) -> Arc<Plain> {
        self.plain.clone()
    }

    /// An instance that initialised itself was read.
    pub(in super::super) fn done(mut self, read: Result<(State, Initialised), String>, memory: &MemoryAccount) {
        let once = self.once;
        let (left, host) = match read {
            Ok(read) => read,
            Err(_) if self.is_anew() => return self.failed(),
            Err(why) => {
                once.awaits.store(false, Ordering::Relaxed);
                *once.stage() = Stage::Refused(why.into());
                return once.anew.tell();
            }
        };
        let turn = self.anew.take().map(|(turn, since)| {
            turn.charge(since.elapsed(), Instant::now());
            turn
        });
        let (plain, is_anew) = (self.plain.clone(), turn.is_some());
        plain.charge.get_or_init(|| memory.waiting(plain.wasm.len() as u64));
        let charge = memory.waiting(left.bytes().len() as u64);
        let recorded =
            Recorded { plain, state: left, host: Arc::new(host), read: Instant::now(), turn, _charge: charge };
        let recorded = Arc::new(recorded);
        if is_anew {
            return once.anew.hand_on(&recorded);
        }
        {
            let mut stage = once.stage();
            // Of two that were made at once, the first counts.
            if matches!(&*stage, Stage::Awaited(_)) {
                *stage = Stage::Read(recorded);
            }
        }
        once.awaits.store(false, Ordering::Relaxed);
        once.anew.tell();
    }

    /// The instance could not be made, or cannot be read: what is wrong with it may be so again.
    pub(in super::super) fn failed(mut self) {
        self.pause = self.once.anew.every;
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some((turn, since)) = self.anew.take() {
            let now = Instant::now();
            turn.charge(now.saturating_duration_since(since), now);
            let pause = self.pause.unwrap_or_else(|| self.once.anew.again());
            self.once.anew.due_after(now, pause.max(turn.pause()));
        }
    }
}
