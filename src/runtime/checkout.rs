//! A lease with its instance: one evaluation's hold on a runtime, and what becomes of the instance afterwards.

use std::{
    future::{Future, poll_fn},
    mem::{replace, take},
    panic::AssertUnwindSafe,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::{Discard, Instance, Runtime, RuntimeInner};
use crate::{
    clock,
    config::Isolation,
    engine::{self, CallContext, CallRequest},
    error::{Error, panic_text},
    last_words::LastWords,
    registry::{Claim, Epoch, Lease, RevisionId, ThreadCache},
    source::Digest,
    tenants::CpuTime,
    usage::Usage,
};

/// How a guest is called, and with what. Input and context are taken out.
pub(crate) struct Invocation<'a> {
    /// `None` for the default one.
    pub(crate) entry_point: Option<&'a str>,
    pub(crate) input: Bytes,
    pub(crate) context: Option<CallContext>,
}

/// How a guest's call ended.
pub(crate) enum Ended {
    /// With what the guest wrote besides.
    Output(Bytes, LastWords),
    Failed(Error),
    /// The runtime's grace was over and the guest was interrupted.
    Stopped,
}

/// What a thread parks: an instance that can be used again, and the lease that it was used under. In a box: it goes through
/// many hands in a call.
pub(crate) struct Parked {
    pub(super) lease: Lease<Runtime>,
    pub(super) instance: Instance,
}

/// A leased runtime and one of its instances.
///
/// Dropped during a call, it stops the guest and discards the instance. Dropped before one, it gives the instance
/// back unused.
pub(crate) struct Checkout<'a> {
    /// `None` once it has ended.
    held: Option<Box<Parked>>,
    /// Where the instance may be parked when the call has ended.
    cache: &'a Arc<ThreadCache<Box<Parked>>>,
    /// Set if it was parked before.
    epoch: Option<Epoch>,
    /// Why the instance cannot be used again; `None` while it can.
    discard: Option<Discard>,
}

impl<'a> Checkout<'a> {
    /// Takes an instance of this revision's runtime that this thread has parked, if there is one.
    pub(crate) fn parked(cache: &'a Arc<ThreadCache<Box<Parked>>>, revision: RevisionId, now: Instant) -> Option<Self> {
        let (mut held, epoch) = cache.take(|parked| parked.lease.revision() == revision, now)?;
        held.lease.use_again(now);
        Some(Self { held: Some(held), cache, epoch: Some(epoch), discard: None })
    }

    /// Takes the instance that comes with a lease, or makes it.
    ///
    /// Cancel safe: the lease ends, and an instance that is being made gives its permit back when it is dropped.
    pub(crate) async fn new(
        mut lease: Lease<Runtime>,
        cache: &'a Arc<ThreadCache<Box<Parked>>>,
    ) -> Result<Self, Error> {
        let internal = |reason| Error::Internal { reason, cause: None };
        let claim = lease.claim().ok_or(internal("a lease was used twice"))?;
        let runtime = lease.resident().ok_or(internal("a lease without a runtime"))?;
        let instance = match claim {
            Claim::Idle => {
                runtime.idle.try_remove().map_err(|_| internal("an instance that was set aside is not there"))?
            }
            Claim::Make(permit) => runtime.make_instance(permit).await?,
        };
        Ok(Self { held: Some(Box::new(Parked { lease, instance })), cache, epoch: None, discard: None })
    }

    /// Runs the guest, from `now` on. Dropping the future stops it. Gives the digest of the plugin that ran as well, and how
    /// long that took. What it used is added to `usage`, whatever comes of it.
    pub(crate) async fn call(
        &mut self,
        invocation: &mut Invocation<'_>,
        now: Instant,
        usage: &mut Usage,
    ) -> (Digest, Ended, Duration) {
        let Some(Parked { lease, instance }) = self.held.as_deref_mut() else {
            unreachable!("held until it has ended")
        };
        let Some(runtime) = lease.resident() else { unreachable!("a lease has its runtime until it ends") };
        let inner: &RuntimeInner = runtime;
        let entry_point = match inner.program.entry_points.find(invocation.entry_point) {
            Ok(entry_point) => entry_point,
            // The instance was not used.
            Err(error) => return (inner.program.digest, Ended::Failed(error), now.elapsed()),
        };
        instance.uses += 1;
        usage.bytes_in = invocation.input.len() as u64;
        // Until the guest has returned, the instance is one that was interrupted.
        self.discard = Some(Discard::Cancelled);
        let deadline = clock::later(now, inner.policy.exec_timeout);
        let (guest, cpu) = (&mut *instance.guest, &*inner.policy.cpu);
        let mut metered = Metered { guest, usage, cpu, charged: Duration::ZERO };
        let call = metered.guest.call(CallRequest {
            entry_point,
            input: take(&mut invocation.input),
            context: take(&mut invocation.context),
            deadline,
        });
        let mut call = AssertUnwindSafe(call).catch_unwind();
        let took;
        // Most guests return at once, and then neither a timer nor a subscription is needed, which all threads share.
        let (mut ended, panicked) = match poll_fn(|context| Poll::Ready(call.poll_unpin(context))).await {
            Poll::Ready(returned) => {
                took = now.elapsed();
                metered.usage.guest = took;
                returned_as(returned)
            }
            Poll::Pending => {
                let (ran, charged) = (&mut metered.usage.guest, &mut metered.charged);
                *ran = now.elapsed();
                let ended = wait(inner, &mut call, deadline, ran, charged).await;
                took = now.elapsed();
                ended
            }
        };
        drop(call);
        drop(metered);
        let (mut words, report) = (instance.guest.last_words(), &inner.program.report);
        match &mut ended {
            Ended::Output(_, written) => {
                report.written(&words);
                words.show_to_clients(report.to_clients);
                *written = words;
            }
            Ended::Failed(error) => {
                let failed = replace(error, Error::Cancelled).change_last_words(|last| *last = words);
                *error = report.failure(failed);
            }
            Ended::Stopped => {}
        }
        self.discard = match &ended {
            Ended::Stopped => Some(Discard::Closed),
            Ended::Failed(Error::ExecTimeout { .. }) => Some(Discard::Timeout),
            Ended::Failed(Error::InvalidRequest { .. }) => Some(Discard::Cancelled),
            _ if panicked => Some(Discard::Panic),
            _ if !instance.guest.is_sound() => Some(Discard::Trap),
            _ if inner.policy.isolation == Isolation::Fresh => Some(Discard::Used),
            _ if instance.uses >= inner.policy.max_uses => Some(Discard::MaxUses),
            _ => None,
        };
        (inner.program.digest, ended, took)
    }
}

/// A guest in a call. Dropped, it asks the engine what the call used; a call whose future is dropped is stopped by then.
struct Metered<'a> {
    guest: &'a mut dyn engine::Instance,
    usage: &'a mut Usage,
    /// What its tenant's guests may use, and how much of its time was charged.
    cpu: &'a CpuTime,
    charged: Duration,
}

impl Drop for Metered<'_> {
    fn drop(&mut self) {
        self.guest.add_usage(self.usage);
        self.cpu.charge(self.usage.guest.saturating_sub(self.charged));
    }
}

/// Waits for a guest that did not return at once: until it does, until its deadline, or until the runtime's close interrupts
/// it. Says as well whether it panicked. Adds up how long its polls take, and charges that.
async fn wait(
    inner: &RuntimeInner,
    call: &mut (impl Future<Output = std::thread::Result<Result<Bytes, Error>>> + Unpin),
    deadline: Instant,
    ran: &mut Duration,
    charged: &mut Duration,
) -> (Ended, bool) {
    if Handle::try_current().is_err() {
        return (Ended::Failed(Error::no_tokio()), false);
    }
    // While it runs, so that no call is taken that is to be refused.
    let call = poll_fn(|context| {
        let began = Instant::now();
        let polled = call.poll_unpin(context);
        *ran += began.elapsed();
        inner.policy.cpu.charge(ran.saturating_sub(*charged));
        *charged = *ran;
        polled
    });
    let mut stop = inner.stop.subscribe();
    tokio::select! {
        // A guest that has just returned is not interrupted.
        biased;
        returned = timeout_at(deadline, call) => match returned {
            Ok(returned) => returned_as(returned),
            Err(_) => (Ended::Failed(Error::exec_timeout(inner.policy.exec_timeout)), false),
        },
        _ = stop.wait_for(|stop| *stop) => (Ended::Stopped, false),
    }
}

/// Whether it ended by a panic as well.
fn returned_as(returned: std::thread::Result<Result<Bytes, Error>>) -> (Ended, bool) {
    match returned {
        Ok(Ok(output)) => (Ended::Output(output, LastWords::none()), false),
        Ok(Err(error)) => (Ended::Failed(error), false),
        Err(panic) => (Ended::Failed(Error::internal("a host function panicked", panic_text(&*panic))), true),
    }
}

/// Parks an instance that can be used again on this thread, or ends its lease.
fn give_back(held: Box<Parked>, cache: &Arc<ThreadCache<Box<Parked>>>, epoch: Option<Epoch>) {
    // Read before asking: see the order that makes reclaim safe.
    let now = cache.epoch();
    let lease = &held.lease;
    let is_ours = || lease.resident().is_some_and(|runtime| runtime.parks_in(cache));
    let may_park = || lease.is_hot() && is_ours() && lease.may_park();
    let held = match epoch.or_else(|| may_park().then_some(now)) {
        Some(epoch) => match cache.park(held, epoch) {
            Ok(()) => return,
            Err(held) => held,
        },
        None => held,
    };
    drop(held.unpark());
}

impl Parked {
    /// Puts the instance into its runtime's pool, and gives the lease to be ended.
    pub(super) fn unpark(self) -> Lease<Runtime> {
        let Self { mut lease, instance } = self;
        if let Some(runtime) = lease.resident() {
            runtime.put_back(instance);
            lease.give_back();
        }
        lease
    }
}

impl Checkout<'_> {
    /// What its drop does.
    pub(crate) fn end(&mut self) {
        let Some(held) = self.held.take() else { return };
        let Some(reason) = self.discard else { return give_back(held, self.cache, self.epoch) };
        let Parked { lease, instance } = *held;
        let fresh = lease.resident().and_then(|runtime| {
            runtime.metrics.discarded(reason.as_str());
            (runtime.policy.isolation == Isolation::Fresh).then(|| runtime.clone())
        });
        drop(instance);
        drop(lease);
        // After the lease, so that whoever waits for the permit comes first.
        if let Some(runtime) = fresh {
            runtime.prepare_spare();
        }
    }
}

impl Drop for Checkout<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
