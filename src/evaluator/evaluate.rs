//! The way of one evaluation: from its data to its response.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::{runtime::Handle, time::Instant};

use super::{Call, Evaluator, EvaluatorInner, call::Counted, unix_millis};
use crate::{
    clock,
    data::InputSource,
    error::Error,
    fair_share::Turn,
    last_words::LastWords,
    registry::RevisionId,
    response::Response,
    revision::Revision,
    runtime::{Checkout, Ended},
    source::Digest,
};

/// What a guest that has returned left, and which plugin it was.
struct Answer {
    digest: Digest,
    output: Bytes,
    written: LastWords,
}

impl Evaluator {
    pub(crate) async fn evaluate_from(&self, data: &dyn InputSource, call: Call<'_>) -> Result<Response, Error> {
        let mut counted = Counted::new(&self.inner.pool.metrics, &self.inner.meter);
        let result = self.evaluate_inner(data, call, &mut counted).await;
        counted.end(result.as_ref().map(drop));
        let Answer { digest, output, written } = result?;
        let Counted { timings, usage, .. } = &counted;
        Ok(Response { evaluator: self.inner.id, digest, output, written, timings: *timings, usage: *usage })
    }

    async fn evaluate_inner(
        &self,
        data: &dyn InputSource,
        call: Call<'_>,
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
        let mut prepared = None;
        if parked.is_used() {
            let (id, input) = self.prepare(data, began)?;
            let mut turn = self.turn(id, &call, began).await?;
            if let Some(mut checkout) = Checkout::parked(parked, id, began) {
                counted.told.hit = true;
                return self.run(&mut checkout, &mut turn, call, input, began, counted).await;
            }
            prepared = Some((id, input, turn));
        }
        // Checked late: `try_current` counts a reference to the runtime, in a word that all its threads share.
        if Handle::try_current().is_err() {
            return Err(Error::no_tokio());
        }
        self.inner.evaluations.fetch_add(1, Ordering::Relaxed);
        self.inner.last_used.store(unix_millis(), Ordering::Relaxed);
        let deadline = clock::later(began, pool.limits.wait_timeout);
        let mut age = None;
        loop {
            let revision = self.revision()?;
            revision.may_run(began)?;
            let (input, mut turn) = match prepared.take() {
                Some((id, input, turn)) if id == revision.id => (input, turn),
                _ => {
                    // Whoever has waited begins anew.
                    let from = if age.is_none() { began } else { Instant::now() };
                    (self.input(&revision, data)?, self.turn(revision.id, &call, from).await?)
                }
            };
            let lease = match revision.lease_as(pool, &mut age, deadline, call.inside).await {
                Ok(lease) => lease,
                // Replaced while it waited: the new plugin answers. Or closed: then there is no revision to go on with.
                Err(Error::Closed { .. }) => continue,
                Err(error) => return Err(error),
            };
            // Its tenant's guests may have used up their time while it waited.
            if lease.waited {
                revision.may_run(Instant::now())?;
            }
            // A caller that joins a build late waits for the rest of it only.
            counted.timings.build = lease.build.min(began.elapsed());
            let mut checkout = Checkout::new(lease, parked).await?;
            return self.run(&mut checkout, &mut turn, call, input, began, counted).await;
        }
    }

    /// The turn of an evaluation, once it has begun. One from inside a host function waits for nobody.
    async fn turn(&self, revision: RevisionId, call: &Call<'_>, began: Instant) -> Result<Turn<'_>, Error> {
        let pool = &self.inner.pool;
        let share = pool.share.as_ref().filter(|_| !call.inside);
        let mut turn = Turn::new(share, revision.tenant, began);
        // Boxed, as it seldom is: it would make every evaluation larger.
        if turn.waits() && !Box::pin(turn.begin(clock::later(began, pool.limits.wait_timeout))).await {
            return Err(Error::WaitTimeout { after: began.elapsed() });
        }
        Ok(turn)
    }

    /// The current revision's input, and which revision that is.
    fn prepare(&self, data: &dyn InputSource, now: Instant) -> Result<(RevisionId, Bytes), Error> {
        let revision = self.inner.revision.load();
        let revision = revision.as_ref().ok_or_else(|| self.closed(false))?;
        revision.may_run(now)?;
        Ok((revision.id, self.input(revision, data)?))
    }

    /// What the guest will be given: the call's own data, merged into the evaluator's.
    fn input(&self, revision: &Revision, data: &dyn InputSource) -> Result<Bytes, Error> {
        let data = data.data(self.inner.wanted(revision))?;
        let limit = self.inner.pool.limits.input_size;
        let base = revision.spec.data.as_ref().map(|provider| provider.provide()).transpose()?;
        data.to_input(base.unwrap_or_default(), limit)
    }

    /// Runs the guest on an instance that waits for it.
    async fn run(
        &self,
        checkout: &mut Checkout<'_>,
        turn: &mut Turn<'_>,
        call: Call<'_>,
        input: Bytes,
        began: Instant,
        counted: &mut Counted<'_>,
    ) -> Result<Answer, Error> {
        let Counted { timings, usage, told, .. } = counted;
        let started = Instant::now();
        turn.goes_on(started);
        let waited = started - began;
        timings.wait = waited.saturating_sub(timings.build);
        told.wait = Some(timings.wait);
        let called = checkout.call(call.entry_point, input, call.context, started, usage, turn);
        let (digest, ended, exec) = called.await;
        timings.exec = exec;
        usage.total = waited + exec;
        told.exec = Some(exec);
        checkout.end();
        match ended {
            Ended::Output(output, written) => {
                usage.bytes_out = output.len() as u64;
                Ok(Answer { digest, output, written })
            }
            Ended::Failed(error) => Err(error),
            Ended::Stopped if self.inner.pool.registry.is_shut_down() => Err(Error::ShuttingDown),
            Ended::Stopped => Err(self.closed(true)),
        }
    }
}
