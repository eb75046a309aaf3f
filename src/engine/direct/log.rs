//! What plugins log goes to `tracing`, under the target `evalpool::plugin`, within bounds.

use std::cmp::Ordering;

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

/// Lines that one evaluation may write.
const LINES: u32 = 100;

/// Bytes of one line.
const LINE: usize = 4096;

/// How many lines one evaluation has written to the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LogBudget {
    written: u32,
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
        self.written = self.written.saturating_add(1);
        let text = match self.written.cmp(&LINES) {
            Ordering::Less => String::from_utf8_lossy(&message[..message.len().min(LINE)]),
            Ordering::Equal => "this evaluation has written enough; the rest is not shown".into(),
            Ordering::Greater => return,
        };
        if let Some(sink) = sink {
            sink.write(level, &text);
        }
        macro_rules! write {
            ($($level:ident),*) => { match level {
                $(Level::$level => {
                    tracing::event!(target: "evalpool::plugin", Level::$level, evaluator, labels, %plugin, "{text}");
                })*
            } };
        }
        write!(TRACE, DEBUG, INFO, WARN, ERROR);
    }
}
