//! Where lines go that plugins log, beside the program's own log.

use std::{fmt, sync::Arc};

use tracing::Level;

/// Takes what one plugin logs, at every level. It is called by the guest's thread, which it must not hold up.
#[derive(Clone)]
pub struct LogSink(Arc<Take>);

type Take = dyn Fn(Level, &str) + Send + Sync;

impl LogSink {
    /// One that gives each line to `take`.
    pub fn new(take: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Gives it a line, which may hold any character.
    pub fn write(&self, level: Level, text: &str) {
        (self.0)(level, text);
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSink")
    }
}
