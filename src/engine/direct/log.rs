//! What plugins log goes to `tracing`, under the target `evalpool::plugin`, within bounds.

use std::{borrow::Cow, cmp::Ordering};

use tracing::Level;

use crate::{engine::LogSink, source::Digest};

/// The functions that PDKs call to log, and their levels.
pub(super) const FUNCTIONS: [(&str, Level); 5] = [
    ("log_trace", Level::TRACE),
    ("log_debug", Level::DEBUG),
    ("log_info", Level::INFO),
    ("log_warn", Level::WARN),
    ("log_error", Level::ERROR),
];

/// Lines that one evaluation may write to the program's log, and to its sink.
const LINES: u32 = 100;

/// Bytes of one line.
const LINE: usize = 4096;

/// How many lines one evaluation has written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LogBudget {
    /// To the program's log. What that does not show is not counted.
    logged: u32,
    /// To the sink, which takes every level.
    kept: u32,
}

impl LogBudget {
    /// Writes a message, or its beginning. The last line says that it is the last.
    pub(super) fn write(
        &mut self,
        level: Level,
        evaluator: &str,
        labels: Option<&str>,
        plugin: Digest,
        sink: Option<&LogSink>,
        message: &[u8],
    ) {
        if let Some(sink) = sink
            && let Some(text) = next(&mut self.kept, message)
        {
            sink.write(level, &text);
        }
        macro_rules! write {
            ($($level:ident),*) => { match level {
                $(Level::$level => {
                    if tracing::enabled!(target: "evalpool::plugin", Level::$level)
                        && let Some(text) = next(&mut self.logged, message)
                    {
                        tracing::event!(target: "evalpool::plugin", Level::$level, evaluator, labels, %plugin, "{text}");
                    }
                })*
            } };
        }
        write!(TRACE, DEBUG, INFO, WARN, ERROR);
    }
}

/// The text of one more line; `None` once there were as many as there may be.
fn next<'a>(count: &mut u32, message: &'a [u8]) -> Option<Cow<'a, str>> {
    *count = count.saturating_add(1);
    match (*count).cmp(&LINES) {
        Ordering::Less => Some(String::from_utf8_lossy(&message[..message.len().min(LINE)])),
        Ordering::Equal => Some("this evaluation has written enough; the rest is not shown".into()),
        Ordering::Greater => None,
    }
}
