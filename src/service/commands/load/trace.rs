//! `--trace`: which evaluator was called when, and with how much input, a line for each call.
//!
//! ```text
//! time,evaluator,input-size
//! 0.000,acme/rate,120
//! 0.125,globex/tax,64
//! ```
//!
//! Times are seconds, counted from the first line's, and never go back. The first line may name the columns. The file may
//! be compressed with gzip. All of it is read before the first evaluation, so that a bad line ends nothing half-way.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use super::open::{Due, Schedule};
use crate::{Data, pool::check_name, service::Exit};

const COLUMNS: &str = "time,evaluator,input-size";

/// Calls of a trace, each of which takes 16 bytes.
const MOST_CALLS: usize = 10_000_000;

/// Evaluators of a trace, as of `--evaluators`.
const MOST_EVALUATORS: usize = 1_000_000;

/// Bytes of a line, of which a name may have 128.
const LONGEST_LINE: u64 = 256;

/// A call of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Call {
    nanos: u64,
    rank: u32,
    size: u32,
}

/// A trace.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// Its evaluators, in the order in which they come first.
    pub(super) names: Vec<String>,
    /// In order of time, the first at 0.
    calls: Vec<Call>,
}

impl Trace {
    /// `input_size` is what an input may have.
    pub(super) fn read(path: &Path, input_size: u64) -> Result<Self, Exit> {
        let read = |path| text(File::open(path)?);
        let unusable = |why: &dyn std::fmt::Display| Exit::unusable(format!("--trace: {}: {why}", path.display()));
        let mut lines = read(path).map_err(|error| unusable(&error))?;
        let mut reading = Reading { input_size, ..Reading::default() };
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            let has_more = (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(|e| unusable(&e))? > 0;
            if !has_more {
                break;
            }
            let is_whole = line.ends_with(b"\n") || (line.len() as u64) < LONGEST_LINE;
            let read = if is_whole { reading.line(number, &line) } else { Err("it is too long".to_owned()) };
            read.map_err(|why| unusable(&format_args!("line {number}: {why}")))?;
        }
        if reading.trace.calls.is_empty() {
            return Err(unusable(&"it has no calls"));
        }
        Ok(reading.trace)
    }

    /// From the first call to the last.
    pub(super) fn length(&self) -> Duration {
        self.calls.last().map_or(Duration::ZERO, |last| Duration::from_nanos(last.nanos))
    }

    /// Its calls, each with `input` and as many spaces behind it as make up the size: JSON is the same with them. A longer
    /// input stays whole.
    pub(super) fn schedule(self, input: &Bytes) -> Schedule {
        let most = self.calls.iter().map(|call| call.size as usize).max().unwrap_or_default();
        let mut longest = input.to_vec();
        longest.resize(most.max(input.len()), b' ');
        let (longest, shortest) = (Bytes::from(longest), input.len());
        Box::new(self.calls.into_iter().map(move |Call { nanos, rank, size }| {
            let input = Data::Bytes(longest.slice(..shortest.max(size as usize)));
            Due { at: Duration::from_nanos(nanos), rank: rank as usize, input }
        }))
    }
}

/// A file's text, which gzip may have compressed: its first two bytes tell.
fn text(file: File) -> io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(file);
    let is_gzip = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) })
}

/// A trace, line by line.
#[derive(Default)]
struct Reading {
    trace: Trace,
    ranks: HashMap<String, u32>,
    /// The first line's time, in seconds.
    first: Option<f64>,
    input_size: u64,
}

impl Reading {
    fn line(&mut self, number: u64, line: &[u8]) -> Result<(), String> {
        let expected = || format!("expected {COLUMNS}, such as 0.125,acme/rate,120");
        let line = std::str::from_utf8(line).map_err(|_| expected())?.trim_ascii_end();
        if number == 1 && line == COLUMNS {
            return Ok(());
        }
        let mut fields = line.split(',').map(str::trim);
        let (Some(time), Some(name), Some(size), None) = (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(expected());
        };
        let seconds = time.parse().ok().filter(|seconds: &f64| seconds.is_finite());
        let seconds = seconds.ok_or_else(|| format!("{time:?} is no time in seconds"))?;
        let since = seconds - *self.first.get_or_insert(seconds);
        if since < 0.0 {
            return Err("its time is before the first line's".to_owned());
        }
        let nanos = Duration::try_from_secs_f64(since).ok().and_then(|at| u64::try_from(at.as_nanos()).ok());
        let nanos = nanos.ok_or_else(|| "its time is too far from the first line's".to_owned())?;
        if self.trace.calls.last().is_some_and(|last| nanos < last.nanos) {
            return Err("its time is before that of the line before; sort the lines by time".to_owned());
        }
        let size: u32 = size.parse().map_err(|_| format!("{size:?} is no size in bytes"))?;
        if u64::from(size) > self.input_size {
            return Err(format!("an input of {size} bytes is over limits.input_size, {}", self.input_size));
        }
        let rank = match self.ranks.get(name) {
            Some(rank) => *rank,
            None => self.named(name)?,
        };
        if self.trace.calls.len() == MOST_CALLS {
            return Err(format!("a trace may have {MOST_CALLS} calls"));
        }
        self.trace.calls.push(Call { nanos, rank, size });
        Ok(())
    }

    /// The rank of an evaluator that comes first now.
    fn named(&mut self, name: &str) -> Result<u32, String> {
        check_name(name).map_err(|error| error.to_string())?;
        let names = &mut self.trace.names;
        let rank = u32::try_from(names.len()).ok().filter(|_| names.len() < MOST_EVALUATORS);
        let rank = rank.ok_or_else(|| format!("a trace may have {MOST_EVALUATORS} evaluators"))?;
        names.push(name.to_owned());
        self.ranks.insert(name.to_owned(), rank);
        Ok(rank)
    }
}
