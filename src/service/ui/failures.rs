//! The last errors of each evaluator, for who wants to know why it fails: a few of each, and so many bytes in all.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use super::now;
use crate::{Error, ErrorKind, EvaluatorId, LastWords};

/// Failures that are kept of one evaluator.
const OF_ONE: usize = 8;

/// Bytes that are kept in all.
const BYTES: usize = 2 << 20;

/// Bytes that are kept of one text.
const TEXT: usize = 4096;

/// What one failure takes beside its texts.
const OVERHEAD: usize = 256;

/// One of the same kind as the last one of its evaluator is counted with it for so many milliseconds.
const TOGETHER: u64 = 1000;

/// Why an evaluation failed, and others in the same second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::service) struct Failure {
    /// When the first did, in milliseconds since the Unix epoch.
    at: u64,
    /// How many did.
    times: u64,
    kind: &'static str,
    detail: String,
    stack: Vec<String>,
    stderr: String,
    stdout: String,
    /// It has left words that only an evaluator with `debug` shows.
    hides: bool,
}

/// Those of all evaluators.
#[derive(Default)]
pub(in crate::service) struct Failures(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    bytes: usize,
    /// By their number: the oldest first.
    all: BTreeMap<u64, (EvaluatorId, Failure)>,
    of: HashMap<EvaluatorId, VecDeque<u64>>,
}

impl Failures {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps why an evaluation of this evaluator failed. What a guest left behind is kept only if its clients may see it.
    pub(in crate::service) fn note(&self, evaluator: EvaluatorId, error: &Error) {
        let kind = error.kind();
        if matches!(kind, ErrorKind::Cancelled | ErrorKind::Closed | ErrorKind::ShuttingDown) {
            return;
        }
        let words = error.last_words();
        let shown = words.and_then(LastWords::for_clients);
        let hides = words.is_some() && shown.is_none();
        let at = now();
        let mut state = self.lock();
        if let Some(last) = state.last_of(evaluator)
            && (last.kind, last.hides) == (kind.as_str(), hides)
            && at.saturating_sub(last.at) < TOGETHER
        {
            last.times += 1;
            return;
        }
        let failure = Failure {
            at,
            times: 1,
            kind: kind.as_str(),
            detail: cut(&error.to_string()),
            stack: shown.map_or_else(Vec::new, |words| words.stack().iter().map(|frame| cut(frame)).collect()),
            stderr: shown.map_or_else(String::new, |words| cut(words.stderr())),
            stdout: shown.map_or_else(String::new, |words| cut(words.stdout())),
            hides,
        };
        state.add(evaluator, failure);
    }

    /// Those of an evaluator, the last one first; what guests left behind only if it shows that now.
    pub(in crate::service) fn of(&self, evaluator: EvaluatorId, is_debugged: bool) -> Vec<Failure> {
        let state = self.lock();
        let numbers = state.of.get(&evaluator).into_iter().flatten().rev();
        let found = numbers.filter_map(|number| Some(state.all.get(number)?.1.clone()));
        found.map(|failure| if is_debugged { failure } else { failure.hidden() }).collect()
    }

    /// Forgets those of an evaluator that is removed. One that is registered by its name later is another.
    pub(in crate::service) fn forget(&self, evaluator: EvaluatorId) {
        let mut state = self.lock();
        for number in state.of.get(&evaluator).cloned().unwrap_or_default() {
            state.remove(number);
        }
    }
}

impl State {
    fn last_of(&mut self, evaluator: EvaluatorId) -> Option<&mut Failure> {
        let number = self.of.get(&evaluator)?.back()?;
        Some(&mut self.all.get_mut(number)?.1)
    }

    fn add(&mut self, evaluator: EvaluatorId, failure: Failure) {
        let number = self.next;
        self.next += 1;
        self.bytes += failure.bytes();
        self.all.insert(number, (evaluator, failure));
        let own = self.of.entry(evaluator).or_default();
        own.push_back(number);
        let too_many = own.front().copied().filter(|_| own.len() > OF_ONE);
        if let Some(oldest) = too_many {
            self.remove(oldest);
        }
        while self.bytes > BYTES
            && let Some(oldest) = self.all.keys().next().copied()
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some((evaluator, failure)) = self.all.remove(&number) else { return };
        self.bytes -= failure.bytes();
        let Some(own) = self.of.get_mut(&evaluator) else { return };
        own.retain(|kept| *kept != number);
        if own.is_empty() {
            self.of.remove(&evaluator);
        }
    }
}

impl Failure {
    /// Without what the guest left behind.
    fn hidden(self) -> Self {
        let Self { stack, stderr, stdout, hides, .. } = &self;
        let hides = *hides || !(stack.is_empty() && stderr.is_empty() && stdout.is_empty());
        Self { hides, stack: Vec::new(), stderr: String::new(), stdout: String::new(), ..self }
    }

    fn bytes(&self) -> usize {
        let stack: usize = self.stack.iter().map(|frame| frame.len() + size_of::<String>()).sum();
        OVERHEAD + self.detail.len() + stack + self.stderr.len() + self.stdout.len()
    }
}

/// A text, or its end if it is long: what comes last says why.
fn cut(text: &str) -> String {
    let from = text.len().saturating_sub(TEXT);
    let kept = text.get(text.ceil_char_boundary(from)..).unwrap_or_default();
    if from > 0 { format!("…{kept}") } else { kept.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_evaluator_keeps_its_last_few_however_often_another_fails() {
        let (failures, quiet, loud) = (Failures::default(), EvaluatorId(1), EvaluatorId(2));
        failures.note(quiet, &Error::guest_error("once"));
        for at in 0..100 {
            let mut error = Error::guest_error("x".repeat(at * 100));
            if at % 2 == 0 {
                error = Error::invalid_request("x".repeat(at * 100));
            }
            failures.note(loud, &error);
            failures.note(loud, &error);
        }
        let kept = failures.of(loud, true);
        assert_eq!((kept.len(), kept[0].kind, kept[0].times), (OF_ONE, "guest_error", 2));
        assert!(kept.iter().all(|failure| failure.detail.len() <= TEXT + 3));
        assert_eq!(failures.of(quiet, true).len(), 1);
        failures.forget(loud);
        assert_eq!(failures.of(loud, true), []);
    }

    #[test]
    fn all_of_them_together_take_so_many_bytes() {
        let failures = Failures::default();
        for at in 0..2000 {
            failures.note(EvaluatorId(at), &Error::guest_error("x".repeat(TEXT)));
        }
        let state = failures.lock();
        assert!(state.bytes <= BYTES && state.bytes > BYTES - 2 * TEXT, "{}", state.bytes);
        assert_eq!(state.of.len(), state.all.len());
        let bytes: usize = state.all.values().map(|(_, failure)| failure.bytes()).sum();
        assert_eq!(bytes, state.bytes);
        drop(state);
        assert_eq!((failures.of(EvaluatorId(0), true).len(), failures.of(EvaluatorId(1999), true).len()), (0, 1));
    }
}
