//! The last errors of each evaluator, for who wants to know why it fails: a few of each, and so many bytes in all.

use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use super::{
    kept::{self, Kept, Most},
    now,
    parts::lock,
};
use crate::{Error, ErrorKind, EvaluatorId, LastWords, service::telemetry::requests::Trace};

/// A few of each, and 2 MiB in all.
const MOST: Most = Most { of_one: 8, bytes_of_one: 8 * 6 * TEXT, bytes: 2 << 20 };

/// Bytes that are kept of one text.
const TEXT: usize = 4096;

/// One of the same kind as the last one of its evaluator is counted with it for so many milliseconds. After that it must say the
/// same, too.
const TOGETHER: u64 = 1000;

/// Why an evaluation failed, and others after it that failed alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::service) struct Failure {
    /// When the first did, in milliseconds since the Unix epoch.
    at: u64,
    /// When the last one did.
    last: u64,
    /// How many did.
    times: u64,
    kind: &'static str,
    detail: String,
    stack: Vec<String>,
    stderr: String,
    stdout: String,
    /// It has left words that only an evaluator with `debug` shows.
    hides: bool,
    /// Of the last.
    trace: Option<Trace>,
    /// When one was last held against what this says.
    #[serde(skip)]
    compared: u64,
}

/// Those of all evaluators.
pub(in crate::service) struct Failures(Mutex<Kept<Failure>>);

impl Default for Failures {
    fn default() -> Self {
        Self(Mutex::new(Kept::new(MOST)))
    }
}

impl Failures {
    fn lock(&self) -> MutexGuard<'_, Kept<Failure>> {
        lock(&self.0)
    }

    /// Keeps why an evaluation of this tenant's evaluator failed. What a guest left behind is kept only if its clients may see
    /// it.
    pub(in crate::service) fn note(&self, evaluator: EvaluatorId, tenant: &str, error: &Error, trace: Option<Trace>) {
        self.note_at(now(), evaluator, tenant, error, trace);
    }

    fn note_at(&self, at: u64, evaluator: EvaluatorId, tenant: &str, error: &Error, trace: Option<Trace>) {
        let kind = error.kind();
        if matches!(kind, ErrorKind::Cancelled | ErrorKind::Closed | ErrorKind::ShuttingDown) {
            return;
        }
        let words = error.last_words();
        let shown = words.and_then(LastWords::for_clients);
        let hides = words.is_some() && shown.is_none();
        let mut kept = self.lock();
        if let Some(last) = kept.last_of(evaluator)
            && (last.kind, last.hides) == (kind.as_str(), hides)
            && at.saturating_sub(last.compared) < TOGETHER
        {
            last.again(at, trace);
            return;
        }
        let failure = Failure {
            at,
            last: at,
            times: 1,
            kind: kind.as_str(),
            detail: cut(&error.to_string()),
            stack: shown.map_or_else(Vec::new, |words| words.stack().iter().map(|frame| cut(frame)).collect()),
            stderr: shown.map_or_else(String::new, |words| cut(words.stderr())),
            stdout: shown.map_or_else(String::new, |words| cut(words.stdout())),
            hides,
            trace,
            compared: at,
        };
        if let Some(last) = kept.last_of(evaluator).filter(|last| last.says(&failure)) {
            last.compared = at;
            last.again(at, trace);
            return;
        }
        let texts = failure.texts();
        kept.add(evaluator, tenant, failure, texts);
    }

    /// Those of an evaluator, the last one first; what guests left behind only if it shows that now.
    pub(in crate::service) fn of(&self, evaluator: EvaluatorId, is_debugged: bool) -> Vec<Failure> {
        let kept = self.lock();
        let found = kept.of(evaluator).rev().cloned();
        found.map(|failure| if is_debugged { failure } else { failure.hidden() }).collect()
    }

    /// Forgets those of an evaluator that is removed.
    pub(in crate::service) fn forget(&self, evaluator: EvaluatorId) {
        self.lock().forget(evaluator);
    }
}

impl Failure {
    /// Without what the guest left behind.
    fn hidden(self) -> Self {
        let Self { stack, stderr, stdout, hides, .. } = &self;
        let hides = *hides || !(stack.is_empty() && stderr.is_empty() && stdout.is_empty());
        Self { hides, stack: Vec::new(), stderr: String::new(), stdout: String::new(), ..self }
    }

    /// Another one failed alike.
    fn again(&mut self, at: u64, trace: Option<Trace>) {
        (self.last, self.times, self.trace) = (at, self.times + 1, trace);
    }

    /// Whether it says what another does.
    fn says(&self, other: &Self) -> bool {
        let Self { kind, detail, stack, stderr, stdout, hides, .. } = self;
        (kind, hides, detail, stack) == (&other.kind, &other.hides, &other.detail, &other.stack)
            && (stderr, stdout) == (&other.stderr, &other.stdout)
    }

    fn texts(&self) -> usize {
        let stack: usize = self.stack.iter().map(|frame| frame.len() + size_of::<String>()).sum();
        self.detail.len() + stack + self.stderr.len() + self.stdout.len()
    }
}

/// A text, or its end if it is long.
fn cut(text: &str) -> String {
    kept::cut(text, TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_evaluator_keeps_its_last_few_however_often_another_fails() {
        let (failures, quiet, loud) = (Failures::default(), EvaluatorId(1), EvaluatorId(2));
        failures.note(quiet, "a", &Error::guest_error("once"), None);
        for at in 0..100 {
            let mut error = Error::guest_error("x".repeat(at * 100));
            if at % 2 == 0 {
                error = Error::invalid_request("x".repeat(at * 100));
            }
            failures.note(loud, "a", &error, None);
            failures.note(loud, "a", &error, None);
        }
        let kept = failures.of(loud, true);
        assert_eq!((kept.len(), kept[0].kind, kept[0].times), (MOST.of_one, "guest_error", 2));
        assert!(kept.iter().all(|failure| failure.detail.len() <= TEXT + 3));
        assert_eq!(failures.of(quiet, true).len(), 1);
        failures.forget(loud);
        assert_eq!(failures.of(loud, true), []);
    }

    #[test]
    fn what_fails_again_and_again_is_told_once_and_since_when() {
        let (failures, evaluator) = (Failures::default(), EvaluatorId(1));
        let told = || failures.of(evaluator, true).iter().map(|it| (it.at, it.last, it.times)).collect::<Vec<_>>();
        let fails = |at, text: &str| failures.note_at(at, evaluator, "a", &Error::guest_error(text), None);
        for at in 0..100 {
            fails(400 * at, "no key");
        }
        assert_eq!(told(), [(0, 39_600, 100)]);
        fails(39_700, "no host, in the same second");
        assert_eq!(told(), [(0, 39_700, 101)]);
        fails(50_000, "no host");
        fails(60_000, "no key");
        assert_eq!(told(), [(60_000, 60_000, 1), (50_000, 50_000, 1), (0, 39_700, 101)]);
    }
}
