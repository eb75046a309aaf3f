//! The worker's own side. Everything here runs in a process of its own.

#[cfg(target_os = "linux")]
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
use std::{
    io::{self, BufReader, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{abort, exit},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use bytes::Bytes;
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use wasmtime::Engine;

use super::{
    MemoryLayout, Sealed, Subject, by_system, compile,
    protocol::{ARGUMENT, NO_MEMORY, Order, Reply, Setup, UNABLE, hear, say},
    tunables,
};
use crate::{
    engine::{CompilePriority, text::shorten},
    error::panic_text,
    pages,
};

/// What the compiler is tried with before anything is asked of it: two functions, so that it starts its threads.
const TRIAL: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x03\x02\0\0\x0a\x07\x02\x02\0\x0b\x02\0\x0b";

/// How much nicer a worker is than the rest: what somebody waits for already goes before what is to be compiled. Not by
/// more, or a busy service would compile nothing.
const NICER: i32 = 5;

/// The stack of the thread that reads orders. It counts as the process's data, which is bounded. In bytes.
const LISTENS: usize = 256 << 10;

/// As the main thread has by default. In bytes.
const STACK: usize = 8 << 20;

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Makes compile workers of this program. Call it first in `main`.
///
/// The `direct` engine compiles strangers' plugins in [processes of its own](crate::engine::choosing), which it starts from
/// the program that is running. In such a process, this function compiles and does not return. In any other it returns at
/// once, and pools that are made from then on compile in workers. Without it, and without
/// [`engine.compile_workers`](crate::config::EngineSettings::compile_workers), pools compile in your process: nothing then
/// bounds the memory and the time of a compile.
///
/// ```no_run
/// // At the start of `main`:
/// evalpool::init_compile_workers();
/// ```
pub fn init_compile_workers() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ARGUMENT) {
        let memory = arguments.next().and_then(|memory| memory.to_str()?.parse().ok());
        exit(if memory.is_some_and(|memory| work(memory).is_ok()) { 0 } else { UNABLE })
    }
    INSTALLED.store(true, Ordering::Relaxed);
}

pub(super) fn is_installed() -> bool {
    INSTALLED.load(Ordering::Relaxed)
}

/// The program that is running, even if its file was replaced since; by its name where there is no `/proc`.
pub(super) fn running() -> PathBuf {
    let file = PathBuf::from("/proc/self/exe");
    if file.exists() {
        return file;
    }
    #[cfg(target_os = "linux")]
    let named = || PathBuf::from(OsStr::from_bytes(rustix::param::linux_execfn().to_bytes()));
    #[cfg(not(target_os = "linux"))]
    let named = || file;
    std::env::current_exe().unwrap_or_else(|_| named())
}

/// Compiles until the owner closes the input.
fn work(memory: u64) -> io::Result<()> {
    // First of all: the memory that this may take, and no file of it when it dies.
    limit(Resource::Data, memory)?;
    limit(Resource::Core, 0)?;
    // If the system does not let it, it runs like the others.
    let _ = rustix::process::nice(NICER);
    // What the compiler says when it panics goes to the owner.
    std::panic::set_hook(Box::new(|_| {}));
    let (orders, mut stdout) = (listen()?, io::stdout().lock());
    let Ok(Heard::Setup(setup)) = orders.recv() else { return Ok(()) };
    let memory = MemoryLayout { reservation: setup.reservation, guard: setup.guard };
    let engines = [false, true].map(|fueled| Engine::new(&tunables::config(fueled, memory)));
    let mut ready = Vec::with_capacity(engines.len());
    for engine in engines {
        ready.push(engine.map_err(io::Error::other)?);
    }
    let [plain, fueled] = &ready[..] else { return Ok(()) };
    catch_unwind(AssertUnwindSafe(|| plain.precompile_module(TRIAL)))
        .map_err(|_| io::Error::other("no threads"))?
        .map_err(io::Error::other)?;
    say(&mut stdout, &Reply::Ready(Setup::new(memory)))?;
    for heard in orders {
        let Heard::Order(order, wasm, state) = heard else { return Ok(()) };
        say(&mut stdout, &Reply::Begun)?;
        allow_time(order.cpu)?;
        let engine = if order.fueled { fueled } else { plain };
        let Ok(digest) = order.digest.parse() else { return Ok(()) };
        let (subject, is_recorded) = (Subject { wasm: &wasm, state: &state }, order.recorded);
        let compiled = if order.priority == CompilePriority::Low {
            give_way(|| {
                let engine = Engine::new(tunables::config(order.fueled, memory).parallel_compilation(false))?;
                compile(&engine, subject, digest, order.links, is_recorded)
            })?
        } else {
            catch_unwind(AssertUnwindSafe(|| compile(engine, subject, digest, order.links, is_recorded)))
        };
        drop((wasm, state));
        match compiled {
            Ok(Ok(code)) => {
                let (engine, size) = (tunables::version(engine), code.len() as u64);
                say(&mut stdout, &Reply::Code { engine, size, resident: resident() })?;
                stdout.write_all(&Sealed::digest(&code))?;
                stdout.write_all(&code)?;
                stdout.flush()?;
            }
            Ok(Err(error)) => say(&mut stdout, &refusal(&error))?,
            // Nobody knows what state it has left behind.
            Err(panic) => return say(&mut stdout, &Reply::Panicked(shorten(&panic_text(&*panic)))),
        }
    }
    Ok(())
}

/// Why there is no code.
fn refusal(error: &wasmtime::Error) -> Reply {
    if by_system(error).any(|cause| cause == Errno::NOMEM) {
        return Reply::Memory;
    }
    // A plugin may have chosen some of it.
    Reply::Invalid { reason: shorten(&error.root_cause().to_string()), chain: shorten(&format!("{error:#}")) }
}

/// Does this on a thread of its own, which leaves the processors to others, and to other builds: nothing makes a thread less
/// nice again.
fn give_way<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<thread::Result<T>> {
    let work = || {
        let _ = rustix::process::nice(NICER);
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work)?;
        Ok(thread.join())
    })
}

enum Heard {
    Setup(Setup),
    Order(Order, Bytes, Bytes),
}

/// Reads on a thread of its own, so that the end of the input is noticed in the middle of a compile.
fn listen() -> io::Result<mpsc::Receiver<Heard>> {
    let (heard, orders) = mpsc::sync_channel(1);
    let read = move || -> io::Result<()> {
        let mut stdin = BufReader::new(io::stdin());
        let send = |what| heard.send(what).map_err(io::Error::other);
        send(Heard::Setup(hear(&mut stdin)?))?;
        loop {
            let order: Order = hear(&mut stdin)?;
            let wasm = pages::read(&mut stdin, order.size)?;
            let state = pages::read(&mut stdin, order.state)?;
            send(Heard::Order(order, wasm, state))?;
        }
    };
    thread::Builder::new().stack_size(LISTENS).spawn(move || {
        if read().is_err_and(|error| error.kind() == io::ErrorKind::OutOfMemory) {
            // As where an allocation cannot fail otherwise.
            eprintln!("{NO_MEMORY}a module failed");
            abort()
        }
        exit(0)
    })?;
    Ok(orders)
}

fn limit(resource: Resource, soft: u64) -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let soft = maximum.map_or(soft, |most| soft.min(most));
    Ok(setrlimit(resource, Rlimit { current: Some(soft), maximum })?)
}

/// Lets this process use so many more seconds of processor time.
fn allow_time(seconds: u64) -> io::Result<()> {
    let used = u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0);
    limit(Resource::Cpu, used.saturating_add(seconds).saturating_add(1))
}

/// What this process holds, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_for_which_the_system_has_no_memory_is_not_refused_as_invalid() {
        assert!(matches!(refusal(&Errno::NOMEM.into()), Reply::Memory));
        for error in [Errno::INVAL.into(), wasmtime::Error::msg("bad section")] {
            let Reply::Invalid { reason, chain } = refusal(&error.context("line 1")) else {
                panic!("it is no shortage")
            };
            assert_eq!(chain, format!("line 1: {reason}"));
        }
    }

    #[test]
    fn what_a_process_holds_is_at_least_what_it_has_written() {
        let held = vec![1_u8; 16 << 20];
        assert!(resident() >= 16 << 20);
        drop(held);
    }
}
