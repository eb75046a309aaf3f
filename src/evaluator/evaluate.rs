//! The way of one evaluation: from its data to its response.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};
use tracing::{Instrument, Span};

use super::{Call, Evaluator, EvaluatorInner, call::Counted, millis};
use crate::{
    clock,
    data::InputSource,
    error::Error,
    last_words::LastWords,
    registry::RevisionId,
    response::Response,
    revision::Revision,
    runtime::{Checkout, Ended},
    source::Digest,
    spans::{self, part, within},
};

/// What an evaluation takes before its guest runs: with a fresh instance of its own, some hundred microseconds.
const MOMENT: Duration = Duration::from_millis(1);

/// What a guest that has returned left, and which plugin it was.
struct Answer {
    digest: Digest,
    output: Bytes,
    written: LastWords,
}

impl Evaluator {
    pub(crate) async fn evaluate_from(&self, data: &dyn InputSource, mut call: Call<'_>) -> Result<Response, Error> {
        let span = spans::wanted().then(|| Box::new(self.span(call.invocation.entry_point)));
        let mut counted = Counted::new(&self.inner.pool.metrics, &self.inner.meter, span.as_deref());
        let result = within!(span.as_deref(), Span::clone, self.evaluate_inner(data, &mut call, &mut counted));
        counted.end(result.as_ref().map(drop));
        if let Some(timings) = call.timings {
            *timings = counted.timings;
        }
        let Answer { digest, output, written } = result?;
        let Counted { timings, usage, .. } = &counted;
        Ok(Response { evaluator: self.inner.id, digest, output, written, timings: *timings, usage: *usage })
    }

    fn span(&self, entry_point: Option<&str>) -> Span {
        let span = spans::evaluation(&self.inner.name, entry_point);
        if let Some(revision) = &*self.inner.revision.load() {
            spans::record_revision(&span, revision.tenant(), revision.id.number);
        }
        span
    }

    // What is handed down goes by reference: a future is moved whole, with all that it was given.
    async fn evaluate_inner(
        &self,
        data: &dyn InputSource,
        call: &mut Call<'_>,
        counted: &mut Counted<'_>,
    ) -> Result<Answer, Error> {
        // An evaluation may end without having waited for anything. A caller in a loop must yield its thread now and then.
        tokio::task::consume_budget().await;
        let EvaluatorInner { pool, parked, .. } = &*self.inner;
        let began = Instant::now();
        counted.began = Some(began);
        // Also if this comes to nothing: what was used is reported by the sweep.
        pool.ensure_sweeping();
        // An evaluator that is called without a pause finds an instance on its thread. Where there is none the input is
        // kept: the evaluator's own data is asked for once a call, and before anything is held.
        let prepared = if parked.is_used() { Some(self.prepare(data, call, began)?) } else { None };
        if let Some((id, _)) = prepared {
            self.take_turn(id, call, began, counted).await?;
        }
        let found = prepared.and_then(|(id, _)| Checkout::parked(parked, id, began));
        counted.told.hit = found.is_some();
        // If nothing took time, to look at the clock would be a tenth of what such a call costs.
        let took_time = counted.has_waited || found.is_none() || prepared.is_none_or(|(_, at_hand)| !at_hand);
        let mut checkout = match found {
            Some(checkout) => checkout,
            None => self.lease(data, call, prepared.map(|(id, _)| id), began, counted).await?,
        };
        let started = if took_time { Instant::now() } else { began };
        let waited = if took_time { started - began } else { Duration::ZERO };
        let Counted { timings, usage, told, span, tenant, has_waited, .. } = counted;
        timings.wait = waited.saturating_sub(timings.build);
        told.wait = Some(timings.wait);
        let (digest, ended, exec) = part!(*span, "run", checkout.call(&mut call.invocation, started, usage));
        if let (Some(share), Some(tenant)) = (&pool.share, *tenant) {
            // Of a guest that ran for longer, the rest is counted by ticks.
            let front = if *has_waited { Duration::ZERO } else { waited.min(MOMENT) };
            share.note(tenant, front + usage.guest.min(MOMENT), started + exec);
        }
        timings.exec = exec;
        usage.total = waited + exec;
        told.exec = Some(exec);
        checkout.end();
        if let Some(span) = span {
            spans::record_plugin(span, &digest, None);
        }
        match ended {
            Ended::Output(output, written) => {
                usage.bytes_out = output.len() as u64;
                Ok(Answer { digest, output, written })
            }
            Ended::Failed(error) => Err(error),
            Ended::Stopped if pool.registry.is_shut_down() => Err(Error::ShuttingDown),
            Ended::Stopped => Err(self.closed(true)),
        }
    }

    /// Asks the registry for an instance. `prepared`: the revision whose input is in `call` already.
    async fn lease(
        &self,
        data: &dyn InputSource,
        call: &mut Call<'_>,
        mut prepared: Option<RevisionId>,
        began: Instant,
        counted: &mut Counted<'_>,
    ) -> Result<Checkout<'_>, Error> {
        let EvaluatorInner { pool, parked, .. } = &*self.inner;
        // Checked late: `try_current` counts a reference to the runtime, in a word that all its threads share.
        if Handle::try_current().is_err() {
            return Err(Error::no_tokio());
        }
        self.inner.evaluations.fetch_add(1, Ordering::Relaxed);
        let last_used = millis(began.saturating_duration_since(self.inner.made)) + 1;
        self.inner.last_used.store(last_used, Ordering::Relaxed);
        let deadline = clock::later(began, pool.limits.wait_timeout);
        let mut age = None;
        loop {
            let revision = self.revision()?;
            revision.may_run(began)?;
            if counted.tenant != Some(revision.id.tenant) {
                self.take_turn(revision.id, call, began, counted).await?;
            }
            if prepared.take() != Some(revision.id) {
                call.invocation.input = self.input(&revision, data)?;
            }
            let leased = part!(counted.span, "wait", revision.lease_as(pool, &mut age, deadline, call.inside));
            let lease = match leased {
                Ok(lease) => lease,
                // Replaced while it waited: the new plugin answers. Or closed: then there is no revision to go on with.
                Err(Error::Closed { .. }) => continue,
                Err(error) => return Err(error),
            };
            if lease.waited {
                counted.has_waited = true;
                let now = Instant::now();
                // Its tenant's guests may have used up their time while it waited.
                revision.may_run(now)?;
                // A caller that joins a build late waits for the rest of it only.
                counted.timings.build = lease.build.min(now - began);
            }
            if let Some(span) = counted.span {
                spans::record_revision(span, revision.tenant(), revision.id.number);
            }
            return part!(counted.span, "instantiate", Checkout::new(lease, parked));
        }
    }

    /// Waits until the others had as much of the processors as this evaluator's tenant, if that had more. Who is inside a host
    /// function waits for nobody.
    async fn take_turn(
        &self,
        id: RevisionId,
        call: &Call<'_>,
        began: Instant,
        counted: &mut Counted<'_>,
    ) -> Result<(), Error> {
        counted.tenant = Some(id.tenant);
        let pool = &self.inner.pool;
        let Some(share) = pool.share.as_ref().filter(|share| !call.inside && share.paces(id.tenant)) else {
            return Ok(());
        };
        // Without tokio nothing can wait; whoever must, says so later.
        if Handle::try_current().is_err() {
            return Ok(());
        }
        counted.has_waited = true;
        // Boxed, as it seldom is: it would make every evaluation larger.
        let deadline = clock::later(began, pool.limits.wait_timeout);
        let waited = timeout_at(deadline, Box::pin(share.wait_for_others(id.tenant))).await;
        waited.map_err(|_| Error::WaitTimeout { after: began.elapsed() })
    }

    /// Puts the current revision's input into the call. Says which revision that is, and whether it was at hand.
    fn prepare(&self, data: &dyn InputSource, call: &mut Call<'_>, now: Instant) -> Result<(RevisionId, bool), Error> {
        let revision = self.inner.revision.load();
        let revision = revision.as_ref().ok_or_else(|| self.closed(false))?;
        revision.may_run(now)?;
        call.invocation.input = self.input(revision, data)?;
        Ok((revision.id, revision.spec.data.is_none() && data.is_at_hand()))
    }

    /// What the guest will be given: the call's own data, merged into the evaluator's.
    fn input(&self, revision: &Revision, data: &dyn InputSource) -> Result<Bytes, Error> {
        let data = data.data(self.inner.wanted(revision))?;
        let limit = self.inner.pool.limits.input_size;
        let base = revision.spec.data.as_ref().map(|provider| provider.provide()).transpose()?;
        data.to_input(base.unwrap_or_default(), limit)
    }
}
