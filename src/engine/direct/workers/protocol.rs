//! What an owner and its worker say to each other: a line of JSON, then as many bytes as it announces.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{MemoryLayout, Subject, Terms};
use crate::engine::CompilePriority;

/// The first argument of a process that is to be a worker.
pub(super) const ARGUMENT: &str = "evalpool-compile-worker";

/// With which code a worker exits that lacks threads or memory to begin.
pub(super) const UNABLE: i32 = 75;

/// How the last words of a worker begin to which the system gave no memory: the standard library says so before it aborts.
pub(super) const NO_MEMORY: &str = "memory allocation of ";

/// A longer line is none of ours. In bytes.
const MOST_OF_A_LINE: u64 = 1 << 20;

/// What both sides must have in common. wasmtime's version and settings are compared with each answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setup {
    release: String,
    /// The engine's settings that change the code: bytes reserved for a memory, and for the guard after it.
    pub(super) reservation: u64,
    pub(super) guard: u64,
}

impl Setup {
    pub(super) fn new(memory: MemoryLayout) -> Self {
        // The number grows with each change of what is said here.
        let release = concat!(env!("CARGO_PKG_VERSION"), " 3").to_owned();
        Self { release, reservation: memory.reservation, guard: memory.guard }
    }
}

/// One module, whose bytes follow, and then those of its state.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) fueled: bool,
    pub(super) links: bool,
    pub(super) recorded: bool,
    pub(super) priority: CompilePriority,
    pub(super) digest: String,
    /// Seconds of processor time.
    pub(super) cpu: u64,
    pub(super) size: u64,
    /// Bytes of the state.
    pub(super) state: u64,
}

impl Order {
    /// What all cores can do within this time, and a second more: whoever waits ends it before, but may not be there.
    pub(super) fn new(terms: Terms, subject: Subject<'_>) -> Self {
        let Terms { digest, kind, links, recorded, within, priority, .. } = terms;
        let (size, state) = (subject.wasm.len() as u64, subject.state.len() as u64);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let cpu = within.as_secs().saturating_add(1).saturating_mul(cores).saturating_add(1);
        Self { fueled: kind.fueled, links, recorded, priority, digest: digest.to_string(), cpu, size, state }
    }
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reply {
    /// To a [`Setup`]: its own, which is the same if the two can work together.
    Ready(Setup),
    /// The module has been read, and the compile begins.
    Begun,
    /// The code follows: its SHA-256, then as many bytes as `size` says.
    Code {
        /// wasmtime's version and settings.
        engine: u64,
        size: u64,
        /// What the worker holds now, in bytes.
        resident: u64,
    },
    /// The module is not valid: the innermost cause, and the whole chain.
    Invalid { reason: String, chain: String },
    /// The compiler panicked. The worker ends.
    Panicked(String),
    /// The system refused memory. Its owner ends it.
    Memory,
}

pub(super) fn say(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// What the other side says, or `UnexpectedEof` if it has closed.
pub(super) fn hear<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<T> {
    let mut line = Vec::new();
    from.take(MOST_OF_A_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
