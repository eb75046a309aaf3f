//! A lease or loan with its instance: one evaluation's hold on a runtime, and what becomes of the instance afterwards.

use std::{
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::{Instance, Lent, Runtime};
use crate::{
    clock,
    config::Isolation,
    error::Error,
    metrics::Discard,
    registry::{Claim, Generation, Lease, Lending, Ticket},
};

/// How a guest's call ended.
pub(crate) enum Ended {
    Output(Bytes),
    Failed(Error),
    /// The runtime's grace was over and the guest was interrupted.
    Stopped,
}

/// The right to use the runtime.
enum Hold {
    Lease(Lease<Runtime>),
    /// For one poll of a guest: see [`Lending`].
    Loan(Ticket),
}

/// A leased runtime and one of its instances.
///
/// Dropped during a call, it stops the guest and discards the instance. Dropped before one, it gives the instance
/// back unused.
pub(crate) struct Active<'a> {
    /// `None` only inside `drop`.
    hold: Option<Hold>,
    /// Where the instance may be lent when the call has ended.
    lending: &'a Arc<Lending<Runtime>>,
    /// What the lease is on, for as long as this lives.
    runtime: Option<Runtime>,
    instance: Option<Instance>,
    /// Why the instance cannot be used again; `None` while it can.
    discard: Option<Discard>,
}

impl<'a> Active<'a> {
    /// Borrows an instance of this generation that is lent to this thread, if there is one. The guest must be called
    /// before anything is awaited.
    pub(crate) fn borrow(lending: &'a Arc<Lending<Runtime>>, generation: Generation, now: Instant) -> Option<Self> {
        let (Lent { instance, runtime }, ticket) = lending.borrow(generation, now)?;
        Some(Self {
            hold: Some(Hold::Loan(ticket)),
            lending,
            runtime: Some(runtime),
            instance: Some(instance),
            discard: None,
        })
    }

    /// Takes the instance that comes with a lease, or makes it.
    ///
    /// Cancel safe: the lease ends, and an instance that is being made gives its permit back when it is dropped.
    pub(crate) async fn new(mut lease: Lease<Runtime>, lending: &'a Arc<Lending<Runtime>>) -> Result<Self, Error> {
        let internal = |reason| Error::Internal { reason, cause: None };
        let runtime = lease.resident().cloned().ok_or(internal("a lease without a runtime"))?;
        let instance = match lease.claim() {
            Some(Claim::Idle) => {
                runtime.inner.idle.try_remove().map_err(|_| internal("an instance that was set aside is not there"))?
            }
            Some(Claim::Make(permit)) => runtime.make_instance(permit).await?,
            None => return Err(internal("a lease was used twice")),
        };
        Ok(Self {
            hold: Some(Hold::Lease(lease)),
            lending,
            runtime: Some(runtime),
            instance: Some(instance),
            discard: None,
        })
    }

    pub(crate) fn runtime(&self) -> Option<&Runtime> {
        self.runtime.as_ref()
    }

    /// Runs the guest, from `now` on. Dropping the future stops it.
    pub(crate) async fn call(&mut self, input: Bytes, now: Instant) -> Ended {
        let (Some(runtime), Some(instance)) = (&self.runtime, &mut self.instance) else {
            return Ended::Failed(Error::Internal { reason: "a call without an instance", cause: None });
        };
        let inner = &runtime.inner;
        let after = inner.policy.exec_timeout;
        let deadline = clock::later(now, after);
        instance.uses += 1;
        // Until the guest has returned, the instance is one that was interrupted.
        self.discard = Some(Discard::Cancelled);
        let guest = &mut instance.guest;
        let (hold, lending) = (&mut self.hold, self.lending);
        let ended = async {
            let call = guest.call(&inner.program.entry_point, input, deadline);
            let mut call = pin!(AssertUnwindSafe(call).catch_unwind());
            // Most guests return at once, and then neither a timer nor a subscription is needed, which all threads share.
            match poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await {
                Poll::Ready(returned) => returned_as(returned),
                Poll::Pending => {
                    // It runs for longer: from here on everybody may know.
                    if let Some(Hold::Loan(ticket)) = hold {
                        let lease = inner.place.surface(runtime.clone(), lending, ticket);
                        *hold = Some(Hold::Lease(lease));
                        if Handle::try_current().is_err() {
                            return Ended::Failed(Error::no_tokio());
                        }
                    }
                    let mut stop = inner.stop.subscribe();
                    tokio::select! {
                        // A guest that has just returned is not interrupted.
                        biased;
                        returned = timeout_at(deadline, call) => match returned {
                            Ok(returned) => returned_as(returned),
                            Err(_) => Ended::Failed(Error::ExecTimeout { after }),
                        },
                        _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
                    }
                }
            }
        }
        .await;
        self.discard = match &ended {
            Ended::Stopped => Some(Discard::Closed),
            Ended::Failed(Error::ExecTimeout { .. }) => Some(Discard::Timeout),
            Ended::Failed(Error::Internal { .. }) => Some(Discard::Panic),
            Ended::Failed(Error::InvalidRequest { .. }) => Some(Discard::Cancelled),
            _ if !instance.guest.is_sound() => Some(Discard::Trap),
            _ if inner.policy.isolation == Isolation::Fresh => Some(Discard::Used),
            _ if instance.uses >= inner.policy.max_uses => Some(Discard::MaxUses),
            _ => None,
        };
        ended
    }
}

/// `Err` is a panic.
fn returned_as(returned: std::thread::Result<Result<Bytes, Error>>) -> Ended {
    match returned {
        Ok(Ok(output)) => Ended::Output(output),
        Ok(Err(error)) => Ended::Failed(error),
        Err(_panic) => Ended::Failed(Error::Internal { reason: "the engine panicked", cause: None }),
    }
}

/// Ends a loan of an instance that can be used again.
fn end_loan(lending: &Lending<Runtime>, ticket: &Ticket, instance: Instance, runtime: Runtime) {
    if let Err(Lent { instance, runtime }) = lending.give_back(ticket, Lent { instance, runtime }) {
        end_lease(runtime.inner.place.surface(runtime.clone(), lending, ticket), instance, runtime);
    }
}

/// The same for a lease.
fn end_lease(lease: Lease<Runtime>, instance: Instance, runtime: Runtime) {
    runtime.put_back(instance);
    drop(runtime);
    lease.give_back();
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        let (Some(hold), Some(runtime), Some(instance)) = (self.hold.take(), self.runtime.take(), self.instance.take())
        else {
            return;
        };
        match (self.discard, hold) {
            (None, Hold::Loan(ticket)) => end_loan(self.lending, &ticket, instance, runtime),
            (None, Hold::Lease(lease)) => match lease.lend(self.lending) {
                Ok(ticket) => end_loan(self.lending, &ticket, instance, runtime),
                Err(lease) => end_lease(lease, instance, runtime),
            },
            (Some(reason), hold) => {
                let lease = match hold {
                    Hold::Lease(lease) => lease,
                    Hold::Loan(ticket) => runtime.inner.place.surface(runtime.clone(), self.lending, &ticket),
                };
                runtime.inner.metrics.discarded(reason);
                drop(instance);
                let fresh = (runtime.inner.policy.isolation == Isolation::Fresh).then(|| runtime.clone());
                drop(runtime);
                drop(lease);
                // After the lease, so that whoever waits for the permit comes first.
                if let Some(runtime) = fresh {
                    runtime.prepare_spare();
                }
            }
        }
    }
}
