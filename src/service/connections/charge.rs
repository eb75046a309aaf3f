//! Bytes in memory, and what they take of the budget.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{Connection, Connections, OWN, State};

/// For how long bytes wait for the room of connections that give way.
const MAKE_ROOM: Duration = Duration::from_secs(1);

/// What bytes are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum Kind {
    Upload,
    /// And every answer.
    Evaluation,
}

/// Why bytes find no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum NoRoom {
    /// Others hold too much.
    Full,
    /// The connection would hold more than its share.
    Share,
}

/// What bytes in memory take of the budget, until it is dropped.
pub(in crate::service) struct Charge {
    connection: Arc<Connection>,
    kind: Kind,
    bytes: u64,
}

impl Connection {
    /// An empty charge, to be grown.
    pub(in crate::service) fn charge(self: &Arc<Self>, kind: Kind) -> Charge {
        Charge { connection: self.clone(), kind, bytes: 0 }
    }
}

impl Charge {
    /// Takes `more` bytes of the budget, if there is room.
    ///
    /// # Errors
    ///
    /// Nothing is taken.
    pub(in crate::service) fn try_grow(&mut self, more: u64) -> Result<(), NoRoom> {
        let all = &self.connection.all;
        let mut state = all.lock();
        let State { all: entries, used, uploads, .. } = &mut *state;
        let Some(held) = entries.get_mut(&self.connection.id).map(|entry| &mut entry.held[self.kind as usize]) else {
            return Err(NoRoom::Full);
        };
        let then = held.saturating_add(more);
        let taken = then.saturating_sub(OWN) - held.saturating_sub(OWN);
        let is_upload = self.kind == Kind::Upload;
        if then.saturating_sub(OWN) > all.budget / if is_upload { 2 } else { 4 } {
            return Err(NoRoom::Share);
        }
        if used.saturating_add(taken) > all.budget || is_upload && uploads.saturating_add(taken) > all.budget / 2 {
            return Err(NoRoom::Full);
        }
        *held = then;
        *used += taken;
        *uploads += if is_upload { taken } else { 0 };
        self.bytes += more;
        Ok(())
    }

    /// The same, and waits for a moment if others that are behind can give way. What waits is in memory meanwhile, at most
    /// an eighth of the budget.
    ///
    /// # Errors
    ///
    /// As [`try_grow`](Self::try_grow).
    pub(in crate::service) async fn grow(&mut self, more: u64) -> Result<(), NoRoom> {
        let connections = self.connection.all.clone();
        let end = Instant::now() + MAKE_ROOM;
        loop {
            let changed = connections.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.try_grow(more) {
                Err(NoRoom::Full) => {
                    let _waits = self.wait_for_others(&connections, more)?;
                    timeout_at(end, changed).await.map_err(|_| NoRoom::Full)?;
                }
                other => return other,
            }
        }
    }

    /// Has others give way to `more` bytes, if any can.
    fn wait_for_others<'a>(&self, all: &'a Connections, more: u64) -> Result<Waits<'a>, NoRoom> {
        let mut state = all.lock();
        let uploads_are_full = self.kind == Kind::Upload && state.uploads.saturating_add(more) > all.budget / 2;
        let of = uploads_are_full.then_some(Kind::Upload);
        if state.waiting.saturating_add(more) > all.budget / 8 || !state.free_some(of) {
            return Err(NoRoom::Full);
        }
        state.waiting += more;
        Ok(Waits { all, bytes: more })
    }

    /// Gives back what is over `bytes`.
    pub(in crate::service) fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        if less == 0 {
            return;
        }
        self.bytes -= less;
        let all = &self.connection.all;
        let mut state = all.lock();
        let State { all: entries, used, uploads, .. } = &mut *state;
        if let Some(entry) = entries.get_mut(&self.connection.id) {
            let held = &mut entry.held[self.kind as usize];
            let then = held.saturating_sub(less);
            let given = held.saturating_sub(OWN) - then.saturating_sub(OWN);
            *held = then;
            *used = used.saturating_sub(given);
            *uploads = uploads.saturating_sub(if self.kind == Kind::Upload { given } else { 0 });
        }
        drop(state);
        all.changed.notify_waiters();
    }

    /// The bytes, charged until the last clone of them is dropped. Others may share the charge.
    pub(in crate::service) fn hold(self: Arc<Self>, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Charged { bytes, _charge: self })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Bytes that wait for the room of others.
struct Waits<'a> {
    all: &'a Connections,
    bytes: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.waiting = state.waiting.saturating_sub(self.bytes);
    }
}

/// Owns bytes and their charge, which ends when the last clone of the bytes is dropped.
struct Charged {
    bytes: Bytes,
    _charge: Arc<Charge>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
