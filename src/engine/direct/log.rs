//! What plugins log goes to `tracing`, under the target `evalpool::plugin`, within bounds.

use tracing::{Level, level_filters::LevelFilter};

use crate::source::Digest;

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

/// Whether a subscriber wants messages of this level.
pub(super) fn is_read(level: Level) -> bool {
    level <= LevelFilter::current()
}

/// How many lines one evaluation may still write to the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogBudget {
    lines: u32,
}

impl Default for LogBudget {
    fn default() -> Self {
        Self { lines: LINES }
    }
}

impl LogBudget {
    /// Writes a message, or its beginning. The last line says that it is the last.
    pub(super) fn write(&mut self, level: Level, plugin: Digest, message: &[u8]) {
        let text = match self.lines {
            0 => return,
            1 => "this evaluation has written enough; the rest is not shown".into(),
            _ => String::from_utf8_lossy(&message[..message.len().min(LINE)]),
        };
        self.lines -= 1;
        macro_rules! write {
            ($($level:ident),*) => { match level {
                $(Level::$level => tracing::event!(target: "evalpool::plugin", Level::$level, %plugin, "{text}"),)*
            } };
        }
        write!(TRACE, DEBUG, INFO, WARN, ERROR);
    }
}
