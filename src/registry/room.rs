//! Room in bytes: how a build waits for it, and how what nobody uses gives way.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{Resident, Shell, guards::InRoomQueue, sync::timeout_at};
use crate::{
    clock,
    memory::{Given, MakeRoom},
    turns::TenantId,
};

/// How long a compiled plugin waits for room in bytes. Calls in flight are what it waits for; meanwhile it keeps others
/// from theirs.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);

impl<R: Resident> MakeRoom for Shell<R> {
    fn make_room(self: Arc<Self>, tenant: TenantId, bytes: u64) -> Pin<Box<dyn Future<Output = Given> + Send>> {
        Box::pin(async move {
            let (to, room) = oneshot::channel();
            let id = self.apply(|state| state.want_room(tenant, bytes, to, Instant::now()));
            let leaves = InRoomQueue { registry: self, id };
            // Dropped before that guard: what it was given at the last moment goes to the next.
            let mut room = room;
            match timeout_at(clock::deadline(ROOM_TIMEOUT), &mut room).await {
                Ok(Ok(granted)) => Ok(granted),
                _ => Err(leaves.registry.lock().no_room(tenant, bytes)),
            }
        })
    }
}

/// Bytes of what nobody uses, which go when this is dropped.
pub(super) struct GivesWay<R: Resident> {
    pub(super) registry: Arc<Shell<R>>,
    pub(super) bytes: u64,
}

impl<R: Resident> Drop for GivesWay<R> {
    fn drop(&mut self) {
        // An engine's objects are dropped here.
        let give_way = AssertUnwindSafe(|| self.registry.memory.give_way(self.bytes));
        let freed = catch_unwind(give_way).unwrap_or(0);
        self.registry.apply(|state| state.gave_way(self.bytes, freed, Instant::now()));
    }
}
