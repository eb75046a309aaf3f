//! The last lines of what evaluators' plugins say, for who writes them: what they log, and what they write to WASI's streams.
//!
//! Only of evaluators with `debug`, whose clients may see what a guest leaves behind. Of others nobody keeps a line.

use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use super::{
    kept::{Kept, Most},
    now,
    parts::lock,
};
use crate::{EvaluatorId, LastWords, service::log::write_harmless};

/// 200 lines and 128 KiB of each, and 4 MiB in all.
const MOST: Most = Most { of_one: 200, bytes_of_one: 128 << 10, bytes: 4 << 20 };

/// Bytes of one line, before control characters are written as their numbers.
const LINE: usize = 4096;

/// Lines of a stream that are kept of one evaluation, the last ones.
const OF_A_STREAM: usize = 50;

/// Something that a plugin said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::service) struct Line {
    /// In milliseconds since the Unix epoch.
    at: u64,
    /// `trace`, `debug`, `info`, `warn`, `error`, `stdout` or `stderr`.
    level: &'static str,
    /// Without control characters.
    text: String,
}

/// Those of all evaluators.
pub(in crate::service) struct Lines(Mutex<Kept<Line>>);

impl Default for Lines {
    fn default() -> Self {
        Self(Mutex::new(Kept::new(MOST)))
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Kept<Line>> {
        lock(&self.0)
    }

    /// Keeps a line that a plugin logged.
    pub(in crate::service) fn note(&self, evaluator: EvaluatorId, tenant: &str, level: tracing::Level, text: &str) {
        let level = match level {
            tracing::Level::TRACE => "trace",
            tracing::Level::DEBUG => "debug",
            tracing::Level::INFO => "info",
            tracing::Level::WARN => "warn",
            tracing::Level::ERROR => "error",
        };
        self.add(evaluator, tenant, level, text);
    }

    /// Keeps the last lines of what an evaluation wrote to its streams.
    pub(in crate::service) fn written(&self, evaluator: EvaluatorId, tenant: &str, words: &LastWords) {
        for (stream, text) in [("stderr", words.stderr()), ("stdout", words.stdout())] {
            let lines = text.lines().count();
            for line in text.lines().skip(lines.saturating_sub(OF_A_STREAM)) {
                self.add(evaluator, tenant, stream, line);
            }
        }
    }

    fn add(&self, evaluator: EvaluatorId, tenant: &str, level: &'static str, text: &str) {
        let (begins, rest) = text.split_at(text.floor_char_boundary(LINE));
        let mut text = String::new();
        // A string takes what it is given.
        let _ = begins.chars().try_for_each(|character| write_harmless(&mut text, character));
        if !rest.is_empty() {
            text.push('…');
        }
        text.shrink_to_fit();
        let bytes = text.len();
        self.lock().add(evaluator, tenant, Line { at: now(), level, text }, bytes);
    }

    /// Those of an evaluator, the oldest first.
    pub(in crate::service) fn of(&self, evaluator: EvaluatorId) -> Vec<Line> {
        self.lock().of(evaluator).cloned().collect()
    }

    /// Forgets those of an evaluator that is removed.
    pub(in crate::service) fn forget(&self, evaluator: EvaluatorId) {
        self.lock().forget(evaluator);
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_line_of_any_length_and_of_any_character_is_one_harmless_line() {
        let (lines, evaluator) = (Lines::default(), EvaluatorId(1));
        lines.note(evaluator, "a", Level::WARN, "a\nforged\r\u{1b}[2J\u{202e}é");
        lines.note(evaluator, "a", Level::ERROR, &"é\0".repeat(100_000));
        let kept = lines.of(evaluator);
        assert_eq!((kept[0].level, &*kept[0].text), ("warn", r"a\nforged\r\u{1b}[2J\u{202e}é"));
        assert!(kept[1].text.len() <= 5 * LINE && kept[1].text.ends_with('…'), "{}", kept[1].text.len());
        assert!(!kept[1].text.contains('\0'));
        assert!(lines.lock().of(evaluator).all(|line| line.text.capacity() == line.text.len()));
    }

    #[test]
    fn of_what_was_written_the_end_is_kept_line_by_line() {
        let (lines, evaluator) = (Lines::default(), EvaluatorId(1));
        let many = (0..1000).map(|at| at.to_string()).collect::<Vec<_>>().join("\n");
        lines.written(evaluator, "a", &LastWords::new(Vec::new(), "one\ntwo".into(), many));
        let kept = lines.of(evaluator);
        assert_eq!(kept.len(), 2 + OF_A_STREAM);
        assert_eq!((kept[1].level, &*kept[1].text, &*kept[2].text), ("stderr", "two", "950"));
        assert_eq!(kept.last().map(|line| &*line.text), Some("999"));
        for at in 0..1000 {
            lines.note(evaluator, "a", Level::INFO, &at.to_string());
        }
        assert_eq!(lines.of(evaluator).len(), MOST.of_one);
        lines.forget(evaluator);
        assert_eq!(lines.of(evaluator), []);
    }
}
