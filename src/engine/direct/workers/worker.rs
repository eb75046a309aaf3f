//! One worker, as its owner sees it. Everything here blocks.

use std::{
    io::{self, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Destination, Sealed, Subject, Terms, Wanted,
    protocol::{ARGUMENT, NO_MEMORY, Order, Reply, Setup, UNABLE, hear, say},
    stop::{Process, Stop, Why, kill},
};
use crate::{
    engine::Ended,
    error::Error,
    host_limits::{is_shortage, killed_for_memory},
};

/// More code than this is not taken. In bytes.
pub(super) const MOST_CODE: u64 = 256 << 20;

/// How much of what a worker wrote before it died is looked at.
const MOST_LAST_WORDS: u64 = 4096;

/// A worker's process with its pipes. Ends it when dropped.
pub(super) struct Worker {
    pub(super) process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: ChildStderr,
    greeted: bool,
    /// Modules that it was given.
    pub(super) builds: u32,
    /// What it held after the last of them, in bytes.
    pub(super) resident: u64,
    /// How many processes the system had ended for want of memory when it began with the last of them.
    killed_before: u64,
}

/// Why there is no code.
#[derive(Debug)]
pub(in super::super) enum Failed {
    /// The module is not valid: the innermost cause, and the whole chain.
    Invalid { reason: String, chain: String },
    /// The compiler panicked.
    Panicked(String),
    /// It takes more memory than a worker may have.
    Memory,
    /// It takes more processor time than a worker may have.
    Time,
    /// Its code would be this large.
    Large(u64),
    /// There is no room for its code.
    NoRoom(Error),
    /// It was stopped.
    Stopped,
    /// The worker has gone, before or after it had begun with the module.
    Gone { begun: bool },
    /// The system lacks what a worker takes.
    Host(io::Error),
    /// What was started is no worker of this program.
    Unfit(String),
}

impl Worker {
    /// Starts a process. By `posix_spawn`, so that a large process takes no longer than a small one. In a group of its own:
    /// what is typed at a terminal to end its owner is not sent to it, and its owner may still need it.
    pub(super) fn start(program: &Path, memory: u64) -> Result<Self, Failed> {
        Self::spawn(Command::new(program).arg(ARGUMENT).arg(memory.to_string()))
    }

    pub(super) fn spawn(command: &mut Command) -> Result<Self, Failed> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.process_group(0).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                Failed::Unfit(format!("{} cannot be started: {error}", command.get_program().display()))
            }
            _ => Failed::Host(error),
        })?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(Failed::Unfit("a process without pipes".into()));
        };
        let (process, output) = (Arc::new(Mutex::new(child)), BufReader::new(output));
        Ok(Self {
            process,
            input,
            output,
            errors,
            greeted: false,
            builds: 0,
            resident: 0,
            killed_before: killed_for_memory(),
        })
    }

    /// Waits until it is ready. Does nothing if it is.
    pub(super) fn greet(&mut self, setup: &Setup) -> Result<(), Failed> {
        if self.greeted {
            return Ok(());
        }
        match say(&mut self.input, setup).and_then(|()| hear(&mut self.output)) {
            Ok(Reply::Ready(theirs)) if theirs == *setup => {
                self.greeted = true;
                Ok(())
            }
            Ok(Reply::Ready(_)) => Err(Failed::Unfit("it is of another build".into())),
            Ok(other) => Err(unexpected(&other)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Failed::Unfit(format!("it does not speak as one: {error}")))
            }
            Err(_) => Err(Failed::Gone { begun: false }),
        }
    }

    /// The code of a module, and the `room` that was made for it.
    pub(super) fn compile<T>(
        &mut self,
        order: &Order,
        subject: Subject<'_>,
        terms: Terms,
        stop: &Stop,
        room: impl FnOnce(Wanted) -> Result<T, Error>,
    ) -> Result<(Sealed, T), Failed> {
        self.builds += 1;
        self.killed_before = killed_for_memory();
        let mut begun = false;
        let begins = || {
            begun = true;
            stop.begun(terms);
        };
        let room = |wanted| {
            stop.compiled();
            room(wanted)
        };
        let answer = self.exchange(order, subject, terms, begins, room);
        answer.map_err(|failed| failed.unwrap_or(Failed::Gone { begun }))
    }

    /// `None`: the worker has gone.
    fn exchange<T>(
        &mut self,
        order: &Order,
        subject: Subject<'_>,
        terms: Terms,
        begun: impl FnOnce(),
        room: impl FnOnce(Wanted) -> Result<T, Error>,
    ) -> Result<(Sealed, T), Option<Failed>> {
        let gone = |_: io::Error| None;
        say(&mut self.input, order).map_err(gone)?;
        self.input.write_all(subject.wasm).and_then(|()| self.input.write_all(subject.state)).map_err(gone)?;
        match hear(&mut self.output).map_err(gone)? {
            Reply::Begun => begun(),
            other => return Err(Some(unexpected(&other))),
        }
        match hear(&mut self.output).map_err(gone)? {
            Reply::Code { engine, .. } if engine != terms.engine => {
                Err(Some(Failed::Unfit("its wasmtime has another version or other settings".into())))
            }
            Reply::Code { size, .. } if size > MOST_CODE => Err(Some(Failed::Large(size))),
            Reply::Code { size, resident, .. } => {
                let to = Destination::new(size, terms.maps);
                let wanted = Wanted::to_load(Sealed::DIGEST + size, to.is_mapped());
                let room = room(wanted).map_err(Failed::NoRoom)?;
                let code = to.read(&mut self.output).map_err(|error| {
                    // Ours, not that of the worker.
                    is_shortage(&error).then_some(Failed::Host(error))
                })?;
                self.resident = resident;
                let code = code.ok_or_else(|| Failed::Unfit("its code does not have its digest".into()))?;
                Ok((code, room))
            }
            Reply::Invalid { reason, chain } => Err(Some(Failed::Invalid { reason, chain })),
            Reply::Panicked(text) => Err(Some(Failed::Panicked(text))),
            Reply::Memory => Err(Some(Failed::Memory)),
            other => Err(Some(unexpected(&other))),
        }
    }

    /// Ends a worker that has failed, and says how it has ended and what that means for its module.
    pub(super) fn end(mut self, failed: Failed, why: Option<Why>) -> (Ended, Failed) {
        let status = self.reap();
        match (why, failed) {
            (Some(Why::Timeout), _) => (Ended::Timeout, Failed::Stopped),
            (Some(Why::Unwanted), _) => (Ended::Killed, Failed::Stopped),
            (None, Failed::Gone { begun }) => {
                let mut written = String::new();
                let _ = (&mut self.errors).take(MOST_LAST_WORDS).read_to_string(&mut written);
                how(status, &written, begun, killed_for_memory() > self.killed_before)
            }
            (None, Failed::Memory) => (Ended::Memory, Failed::Memory),
            (None, failed @ Failed::Panicked(_)) => (Ended::Crashed, failed),
            (None, failed) => (Ended::Done, failed),
        }
    }

    /// Whether its process has not ended.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.process().try_wait(), Ok(None))
    }

    /// Does not wait until it has ended.
    pub(super) fn kill(&self) {
        kill(&self.process);
    }

    /// Once it has closed its pipes, its end has begun, and this does not change how.
    fn reap(&self) -> Option<ExitStatus> {
        self.kill();
        self.process().wait().ok()
    }

    fn process(&self) -> MutexGuard<'_, Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unexpected(reply: &Reply) -> Failed {
    Failed::Unfit(format!("it said {reply:?}"))
}

/// `for_memory`: the system has ended some process for want of memory meanwhile.
fn how(status: Option<ExitStatus>, written: &str, begun: bool, for_memory: bool) -> (Ended, Failed) {
    use rustix::process::Signal;

    let signal = status.and_then(|status| status.signal());
    if signal == Some(Signal::XCPU.as_raw()) {
        (Ended::Timeout, Failed::Time)
    } else if signal == Some(Signal::ABORT.as_raw()) && written.contains(NO_MEMORY) {
        (Ended::Memory, Failed::Memory)
    } else if signal == Some(Signal::KILL.as_raw()) && for_memory {
        (Ended::Memory, Failed::Host(io::ErrorKind::OutOfMemory.into()))
    } else if status.and_then(|status| status.code()) == Some(UNABLE) {
        let text = "a compile worker lacks threads or memory to begin; see ulimit -u, -v and pids.max";
        (Ended::Crashed, Failed::Host(io::Error::other(text)))
    } else {
        (Ended::Crashed, Failed::Gone { begun })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.reap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_the_system_ends_for_want_of_memory_is_not_the_plugins_fault() {
        let killed = Some(ExitStatus::from_raw(9));
        assert!(matches!(how(killed, "", true, true), (Ended::Memory, Failed::Host(_))));
        assert!(matches!(how(killed, "", true, false), (Ended::Crashed, Failed::Gone { begun: true })));
    }

    #[test]
    fn a_worker_that_died_says_by_how_it_did_what_that_means_for_its_module() {
        use rustix::process::Signal;

        let by = |signal: Signal| Some(ExitStatus::from_raw(signal.as_raw()));
        let no_memory = format!("{NO_MEMORY}64 bytes failed");
        assert!(matches!(how(by(Signal::XCPU), "", true, true), (Ended::Timeout, Failed::Time)));
        assert!(matches!(how(by(Signal::ABORT), &no_memory, true, false), (Ended::Memory, Failed::Memory)));
        assert!(matches!(how(Some(ExitStatus::from_raw(UNABLE << 8)), "", false, false), (_, Failed::Host(_))));
        for (status, written) in [
            (by(Signal::ABORT), "other"),
            (by(Signal::SEGV), &no_memory),
            (by(Signal::TERM), ""),
            (Some(ExitStatus::from_raw(1 << 8)), ""),
            (None, ""),
        ] {
            assert!(matches!(how(status, written, false, true), (Ended::Crashed, Failed::Gone { begun: false })));
        }
    }
}
