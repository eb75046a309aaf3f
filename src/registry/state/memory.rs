//! Room in bytes: who waits for it, and what is closed for it.
//!
//! What is used is read from the [account](crate::memory), which guests change while they run. What closing would give back
//! is asked of the residents, and only when there is too little room. So the common way costs three loads.
//!
//! First idle instances go, then code that is kept although nobody runs it, then runtimes that nobody uses, each the least
//! recently used first. An instance is made in microseconds, and code is compiled in seconds; but a runtime without
//! instances holds little beside its code, and was used later than what was closed before it. Code that several runtimes
//! share comes back with the last of them, so those go after all others.
//!
//! The code of a runtime that was closed may be kept by the engine. Then closing it gave nothing back yet, and what was
//! unused longest goes in its turn.

use tokio::{sync::oneshot, time::Instant};

use super::{
    super::{CloseReason, Refused, Resident, RevisionId},
    Effect, RegistryState,
    entries::{Coming, Live},
};
use crate::{
    memory::{Granted, NoRoom, Weight},
    turns::TenantId,
};

/// Which part of the bound is kept free, once it was exceeded.
const SLACK: u64 = 64;

/// A build that waits for room.
pub(super) struct WantsRoom {
    tenant: TenantId,
    bytes: u64,
    to: oneshot::Sender<Granted>,
}

/// Position in the queue for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RoomId(u64);

impl<R: Resident> RegistryState<R> {
    /// A build of this tenant wants room for so many bytes.
    pub(in crate::registry) fn want_room(
        &mut self,
        tenant: TenantId,
        bytes: u64,
        to: oneshot::Sender<Granted>,
        now: Instant,
    ) -> RoomId {
        let id = RoomId(self.unique());
        // After a shutdown there is none.
        if !self.shut_down {
            self.room_queue.insert(id, WantsRoom { tenant, bytes, to });
            self.dispatch(now);
        }
        id
    }

    /// It got its room, or waits no longer.
    pub(in crate::registry) fn leave_room(&mut self, id: RoomId, now: Instant) {
        if self.room_queue.remove(&id).is_some() {
            self.dispatch(now);
        }
    }

    /// Makes room if guests have grown beyond the bound. Idle instances go; runtimes only if that is enough: what a
    /// neighbour grew to closes nobody in vain.
    pub(in crate::registry) fn weigh(&mut self, now: Instant) {
        if self.is_over() {
            self.make_room(0, now);
        }
        self.trim_all(now);
        self.dispatch(now);
    }

    /// Whether somebody waits for room, or `more` that nobody asked for would lead near the bound.
    pub(super) fn room_is_short(&self, more: u64) -> bool {
        self.wants_room() || self.memory.used().saturating_add(more) > self.goal()
    }

    /// Whether somebody waits for room, or there is none.
    pub(super) fn has_no_room(&self) -> bool {
        self.wants_room() || self.is_over()
    }

    /// Whether a build waits for room that another tenant could give.
    fn wants_room(&self) -> bool {
        self.room_queue.values().any(|wants| self.is_within_own(wants))
    }

    fn is_within_own(&self, wants: &WantsRoom) -> bool {
        self.own_room(wants.tenant).is_none_or(|room| wants.bytes <= room)
    }

    /// Why a build got no room.
    pub(in crate::registry) fn no_room(&self, tenant: TenantId, bytes: u64) -> NoRoom {
        match self.own_room(tenant) {
            Some(room) if bytes > room => NoRoom::Tenant(self.own_memory(tenant)),
            _ => NoRoom::Pool,
        }
    }

    fn is_over(&self) -> bool {
        self.memory.used() > self.memory.limit()
    }

    /// What is left where room is made. A little below the bound, so that not every call leads beyond it again.
    fn goal(&self) -> u64 {
        self.memory.limit() - self.memory.limit() / SLACK
    }

    /// Gives room to those that wait for it, eldest first, and makes it for the first whom too little is left for. The
    /// others do not wait for that one.
    pub(super) fn give_room(&mut self, now: Instant) {
        for (id, wants) in std::mem::take(&mut self.room_queue) {
            let fits = self.memory.used().saturating_add(wants.bytes) <= self.memory.limit();
            if fits && self.is_within_own(&wants) {
                let granted = self.memory.give_room(wants.tenant, wants.bytes);
                self.effects.push(Effect::Room { to: wants.to, granted });
            } else {
                self.room_queue.insert(id, wants);
            }
        }
        let first = self.room_queue.values().find(|wants| self.is_within_own(wants)).map(|wants| wants.bytes);
        let own = self.room_queue.values().filter(|wants| !self.is_within_own(wants));
        for (tenant, bytes) in own.map(|wants| (wants.tenant, wants.bytes)).collect::<Vec<_>>() {
            self.trim(tenant, bytes, now);
        }
        if let Some(bytes) = first {
            self.make_room(bytes, now);
        }
    }

    /// Makes room for so many bytes, and for what guests have grown beyond the bound.
    fn make_room(&mut self, bytes: u64, now: Instant) {
        if !self.parking.is_empty() {
            // What is parked may be idle. The end of the reclaim leads here again.
            return self.reclaim_all();
        }
        let (used, limit) = (self.memory.used().saturating_sub(self.room_coming()), self.memory.limit());
        let wanted = used.saturating_add(bytes);
        if wanted <= limit {
            return;
        }
        let can_free = self.can_free();
        // For a build only if it is enough, and runtimes only then: otherwise nothing is lost in vain.
        if can_free >= wanted - limit {
            let short = self.reap_for_room(wanted.saturating_sub(self.goal()));
            let short = self.give_way(short);
            self.evict_for_room(short, now);
        } else if used > limit {
            let short = self.reap_for_room(used - self.goal());
            let short = self.give_way(short);
            if can_free >= used - limit {
                self.evict_for_room(short, now);
            }
        }
    }

    /// Has dropped what is kept although nobody uses it. Gives what is still missing.
    fn give_way(&mut self, short: u64) -> u64 {
        let bytes = self.unused().min(short);
        if bytes > 0 {
            self.giving_way += bytes;
            self.effects.push(Effect::GiveWay { bytes });
        }
        short - bytes
    }

    /// What is kept although nobody uses it, and is not being dropped yet.
    fn unused(&self) -> u64 {
        self.memory.unused().saturating_sub(self.giving_way)
    }

    /// What was `asked` to give way has done so, and `freed` bytes.
    pub(in crate::registry) fn gave_way(&mut self, asked: u64, freed: u64, now: Instant) {
        self.giving_way -= asked;
        // If somebody was about to use it, the next change tells what else there is.
        if freed > 0 {
            self.dispatch(now);
        }
    }

    /// What is on its way back.
    fn room_coming(&self) -> u64 {
        let closing = self.draining.values().filter(|draining| matches!(draining.coming, Coming::Soon { .. }));
        let reaping = self.live.iter().filter(|(_, live)| live.reaping != 0);
        let frees = closing.map(|draining| draining.frees);
        self.giving_way + frees.chain(reaping.map(|(_, live)| live.each() * live.reaping as u64)).sum::<u64>()
    }

    /// What could be given back by dropping all that nobody uses.
    fn can_free(&self) -> u64 {
        let can_go = self.evictable();
        let frees = |id: &RevisionId, live: &Live<R>| match live.resident.weight() {
            Weight { code, shared, .. } if can_go(id, live) => {
                live.each() * (live.instances - live.reaping) as u64 + code + shared
            }
            _ => live.each() * live.idle as u64,
        };
        self.unused() + self.live.iter().map(|(id, live)| frees(id, live)).sum::<u64>()
    }

    /// Drops idle instances, least recently used runtimes first. Gives what is still missing.
    fn reap_for_room(&mut self, mut short: u64) -> u64 {
        let idle = self.live.iter().rev().filter(|(_, live)| live.idle != 0);
        let idle = idle.map(|(revision, live)| (*revision, live.idle, live.each()));
        let idle: Vec<_> = idle.filter(|(_, _, each)| *each > 0).collect();
        for (revision, idle, each) in idle {
            for _ in 0..idle {
                if short == 0 {
                    return 0;
                }
                self.reap_one(revision);
                short = short.saturating_sub(each);
            }
        }
        short
    }

    /// Evicts runtimes that nobody uses: first those with code of their own.
    fn evict_for_room(&mut self, mut short: u64, now: Instant) {
        for shares in [false, true] {
            let can_go = self.evictable();
            let unused = self.live.iter().rev().filter(|(id, live)| can_go(id, live));
            let weighed = unused.map(|(revision, live)| (*revision, live.resident.weight()));
            let weighed = weighed.filter(|(_, weight)| (weight.shared > 0) == shares && weight.total() > 0);
            let weighed: Vec<(RevisionId, Weight)> = weighed.collect();
            drop(can_go);
            for (revision, weight) in weighed {
                if short == 0 {
                    return;
                }
                self.retire_live(revision, CloseReason::Memory, None, &Refused::Retry, now);
                short = short.saturating_sub(weight.total());
            }
        }
    }
}

impl<R: Resident> Live<R> {
    /// What one of its instances holds, on average.
    pub(super) fn each(&self) -> u64 {
        self.resident.weight().instances / self.instances.max(1) as u64
    }
}
