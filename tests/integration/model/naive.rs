//! What should happen, said as simply as possible: plain lists, one thread, no clock.

use std::collections::BTreeMap;

use super::EVALUATORS;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Build {
    Ok,
    Fail,
    Panic,
}

/// A call that has not ended. Its number is its age.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Call {
    pub(super) number: usize,
    pub(super) evaluator: usize,
    /// Ends as soon as it runs.
    pub(super) quick: bool,
    pub(super) trap: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Runtime {
    pub(super) evaluator: usize,
    pub(super) running: Vec<Call>,
    /// Calls that a claim holds back.
    pub(super) waiting: Vec<Call>,
    pub(super) claimed: bool,
    /// Whom the claim lets pass: those who waited when it first could have been taken out.
    pub(super) last_round: Option<usize>,
}

/// What should happen, said as simply as possible.
#[derive(Debug, Default, Clone)]
pub(super) struct Model {
    pub(super) capacity: usize,
    /// Callers that may wait; `None`: any number.
    pub(super) max_waiting: Option<usize>,
    /// Least recently used first.
    pub(super) live: Vec<Runtime>,
    /// Taken out with calls still running: each has its place until they end.
    pub(super) draining: Vec<Runtime>,
    /// Builds that wait for a place, eldest first, each with those who wait for it.
    pub(super) queue: Vec<(usize, Vec<Call>)>,
    pub(super) claims: Vec<usize>,
    pub(super) closed: [bool; EVALUATORS],
    /// How calls ended, by number.
    pub(super) outcomes: BTreeMap<usize, &'static str>,
    pub(super) builds: usize,
}

impl Model {
    pub(super) fn find(&mut self, evaluator: usize) -> Option<&mut Runtime> {
        self.live.iter_mut().find(|runtime| runtime.evaluator == evaluator)
    }

    pub(super) fn touch(&mut self, evaluator: usize) {
        if let Some(at) = self.live.iter().position(|runtime| runtime.evaluator == evaluator) {
            let runtime = self.live.remove(at);
            self.live.push(runtime);
        }
    }

    pub(super) fn call(&mut self, call: Call, build: Build) {
        if self.closed[call.evaluator] {
            self.outcomes.insert(call.number, "closed");
            return;
        }
        self.touch(call.evaluator);
        let (eldest, full) = (self.eldest(), self.max_waiting.is_some_and(|most| self.waiting() >= most));
        let refused = (call.number, "quota_exceeded");
        let sees_place = self.queue.len() < self.capacity - self.live.len() - self.draining.len() + self.unused();
        if let Some(runtime) = self.find(call.evaluator) {
            let passes = runtime.last_round.is_some_and(|last| call.number <= last);
            let held_back = runtime.claimed && !passes && eldest.is_some_and(|eldest| eldest < call.number);
            if (held_back || !runtime.waiting.is_empty()) && full {
                self.outcomes.extend([refused]);
            } else if held_back || !runtime.waiting.is_empty() {
                runtime.waiting.push(call);
                runtime.waiting.sort_by_key(|call| call.number);
            } else {
                runtime.running.push(call);
            }
        } else if full && !sees_place {
            self.outcomes.extend([refused]);
        } else if let Some((_, waiting)) = self.queue.iter_mut().find(|(evaluator, _)| *evaluator == call.evaluator) {
            waiting.push(call);
            waiting.sort_by_key(|call| call.number);
        } else {
            self.queue.push((call.evaluator, vec![call]));
            self.queue.sort_by_key(|(_, waiting)| waiting[0].number);
        }
        self.settle(build);
    }

    /// Callers that wait.
    fn waiting(&self) -> usize {
        let held_back = self.live.iter().map(|runtime| runtime.waiting.len());
        held_back.chain(self.queue.iter().map(|(_, waiting)| waiting.len())).sum()
    }

    /// Runtimes that could be taken out now.
    fn unused(&self) -> usize {
        let unused = |runtime: &&Runtime| runtime.running.is_empty() && (runtime.waiting.is_empty() || runtime.claimed);
        self.live.iter().filter(unused).count()
    }

    /// The age of the eldest build that waits.
    pub(super) fn eldest(&self) -> Option<usize> {
        self.queue.first().map(|(_, waiting)| waiting[0].number)
    }

    pub(super) fn settle(&mut self, build: Build) {
        loop {
            // Elders are not held back for a younger build.
            let eldest = self.eldest().unwrap_or(usize::MAX);
            for runtime in &mut self.live {
                let (elders, held_back): (Vec<Call>, _) =
                    std::mem::take(&mut runtime.waiting).into_iter().partition(|call| call.number < eldest);
                runtime.waiting = held_back;
                runtime.running.extend(elders);
            }
            self.end_quick_calls();
            if !self.queue.is_empty() && self.live.len() + self.draining.len() < self.capacity {
                let (evaluator, waiting) = self.queue.remove(0);
                self.builds += 1;
                if build == Build::Ok {
                    self.live.push(Runtime {
                        evaluator,
                        running: waiting,
                        waiting: vec![],
                        claimed: false,
                        last_round: None,
                    });
                } else {
                    let kind = if build == Build::Fail { "invalid_plugin" } else { "internal" };
                    self.outcomes.extend(waiting.iter().map(|call| (call.number, kind)));
                }
                continue;
            }
            if !self.queue.is_empty() {
                let victim = self
                    .live
                    .iter()
                    .position(|runtime| runtime.running.is_empty() && (runtime.waiting.is_empty() || runtime.claimed));
                if let Some(victim) = victim {
                    let runtime = &mut self.live[victim];
                    if runtime.last_round.is_none()
                        && let Some(last) = runtime.waiting.last()
                    {
                        runtime.last_round = Some(last.number);
                        runtime.running.append(&mut runtime.waiting);
                    } else {
                        self.take_out(victim);
                    }
                    continue;
                }
            }
            let short = self.queue.len().saturating_sub(self.capacity - self.live.len() - self.draining.len());
            if self.claims.len() > short {
                let evaluator = self.claims.pop().unwrap();
                if let Some(runtime) = self.find(evaluator) {
                    runtime.claimed = false;
                    runtime.last_round = None;
                    let waiting = std::mem::take(&mut runtime.waiting);
                    runtime.running.extend(waiting);
                }
                continue;
            }
            if self.claims.len() < short
                && let Some(runtime) =
                    self.live.iter_mut().find(|runtime| !runtime.claimed && !runtime.running.is_empty())
            {
                runtime.claimed = true;
                let evaluator = runtime.evaluator;
                self.claims.push(evaluator);
                continue;
            }
            return;
        }
    }

    pub(super) fn end_quick_calls(&mut self) {
        let mut touched = vec![];
        for runtime in self.live.iter_mut().chain(&mut self.draining) {
            let (ended, running): (Vec<Call>, _) =
                std::mem::take(&mut runtime.running).into_iter().partition(|call| call.quick);
            runtime.running = running;
            for call in &ended {
                self.outcomes.insert(call.number, if call.trap { "guest_trap" } else { "ok" });
            }
            if !ended.is_empty() {
                touched.push(runtime.evaluator);
            }
        }
        for evaluator in touched {
            self.touch(evaluator);
        }
        self.draining.retain(|runtime| !runtime.running.is_empty());
    }

    /// Takes a live runtime out: what runs on it drains, what waits for it asks again.
    pub(super) fn take_out(&mut self, at: usize) {
        let mut runtime = self.live.remove(at);
        self.claims.retain(|claimed| *claimed != runtime.evaluator);
        let again = std::mem::take(&mut runtime.waiting);
        if !runtime.running.is_empty() {
            self.draining.push(runtime);
        }
        for call in again {
            self.call(call, Build::Ok);
        }
    }

    pub(super) fn unload(&mut self, evaluator: usize) {
        let mut again = vec![];
        if let Some(at) = self.queue.iter().position(|(queued, _)| *queued == evaluator) {
            again = self.queue.remove(at).1;
        }
        if let Some(at) = self.live.iter().position(|runtime| runtime.evaluator == evaluator) {
            self.take_out(at);
        }
        // Whoever is asked to ask again comes after those who were only held back.
        self.settle(Build::Ok);
        for call in again {
            self.call(call, Build::Ok);
        }
    }

    pub(super) fn close(&mut self, evaluator: usize) {
        self.closed[evaluator] = true;
        self.unload(evaluator);
    }

    /// A call that ran or waited is gone.
    pub(super) fn end(&mut self, number: usize, outcome: &'static str) {
        let runs = |runtime: &&Runtime| runtime.running.iter().any(|call| call.number == number);
        let touched = self.live.iter().find(runs).map(|runtime| runtime.evaluator);
        for runtime in self.live.iter_mut().chain(&mut self.draining) {
            runtime.running.retain(|call| call.number != number);
            runtime.waiting.retain(|call| call.number != number);
        }
        self.draining.retain(|runtime| !runtime.running.is_empty());
        for (_, waiting) in &mut self.queue {
            waiting.retain(|call| call.number != number);
        }
        self.queue.retain(|(_, waiting)| !waiting.is_empty());
        self.queue.sort_by_key(|(_, waiting)| waiting[0].number);
        self.outcomes.insert(number, outcome);
        if let Some(evaluator) = touched {
            self.touch(evaluator);
        }
        self.settle(Build::Ok);
    }

    pub(super) fn rest(&mut self) {
        self.live.retain(|runtime| !runtime.running.is_empty() || !runtime.waiting.is_empty());
        self.settle(Build::Ok);
    }

    pub(super) fn is_running(&self, number: usize) -> bool {
        self.live.iter().chain(&self.draining).any(|runtime| runtime.running.iter().any(|call| call.number == number))
    }

    /// Live runtimes, most recently used first, with their leases.
    pub(super) fn shown(&self) -> Vec<(usize, usize)> {
        self.live.iter().rev().map(|runtime| (runtime.evaluator, runtime.running.len())).collect()
    }
}
