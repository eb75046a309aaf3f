//! `--csv`: what was counted in each second, a line for each as it ends.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::tally::{histogram, mib, record};
use crate::service::Exit;

const COLUMNS: &str = "second,evaluations,errors,p50_us,p99_us,live_runtimes,rss_mib";

/// The second that is not over yet, in which whatever ends is counted.
pub(super) struct Second(Mutex<Counts>);

struct Counts {
    evaluations: u64,
    errors: u64,
    latency: Histogram<u64>,
}

impl Second {
    pub(super) fn count(&self, is_ok: bool, took: Duration) {
        let mut counts = self.lock();
        counts.evaluations += 1;
        if is_ok {
            record(&mut counts.latency, took);
        } else {
            counts.errors += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // A panic could at worst leave one count too few.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file.
pub(super) struct Seconds {
    path: PathBuf,
    file: File,
    current: Arc<Second>,
    /// How many are over.
    over: u64,
    /// What came of the last line. After a failure there is none.
    written: io::Result<()>,
}

impl Seconds {
    /// Creates the file, in place of one that is there.
    pub(super) fn create(path: &Path) -> Result<Self, Exit> {
        let mut file = File::create(path).map_err(|error| unusable(path, &error))?;
        writeln!(file, "{COLUMNS}").map_err(|error| unusable(path, &error))?;
        let counts = Counts { evaluations: 0, errors: 0, latency: histogram()? };
        let current = Arc::new(Second(Mutex::new(counts)));
        Ok(Self { path: path.to_owned(), file, current, over: 0, written: Ok(()) })
    }

    pub(super) fn current(&self) -> Arc<Second> {
        self.current.clone()
    }

    /// Writes what is over after so much time.
    pub(super) fn pass(&mut self, elapsed: Duration, live: usize, resident: impl Fn() -> u64) {
        while self.over < elapsed.as_secs() {
            self.end(live, resident());
        }
    }

    /// Writes the rest, as a last second.
    pub(super) fn finish(mut self, live: usize, resident: u64) -> Result<(), Exit> {
        self.end(live, resident);
        let Self { path, written, .. } = self;
        written.map_err(|error| unusable(&path, &error))
    }

    fn end(&mut self, live: usize, resident: u64) {
        let mut counts = self.current.lock();
        // Nothing, rather than 0, where nothing succeeded.
        let micros = |quantile| match counts.latency.len() {
            0 => String::new(),
            _ => format!("{:.3}", counts.latency.value_at_quantile(quantile) as f64 / 1000.0),
        };
        let (second, Counts { evaluations, errors, .. }) = (self.over, &*counts);
        let (p50, p99, resident) = (micros(0.5), micros(0.99), mib(resident));
        let text = format!("{second},{evaluations},{errors},{p50},{p99},{live},{resident:.3}\n");
        (counts.evaluations, counts.errors) = (0, 0);
        counts.latency.reset();
        drop(counts);
        self.over += 1;
        if self.written.is_ok() {
            self.written = self.file.write_all(text.as_bytes());
        }
    }
}

fn unusable(path: &Path, error: &io::Error) -> Exit {
    Exit::unusable(format!("--csv: cannot write {}: {error}", path.display()))
}
