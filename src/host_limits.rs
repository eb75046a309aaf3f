//! What the system lets this process have, and which of its errors say that it gives no more.

use std::{
    fmt::Display,
    io::{self, ErrorKind},
};

#[cfg(feature = "direct")]
use {
    crate::{host_memory, units::Size},
    rustix::process::{Resource, getrlimit},
    std::fs,
};

const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Whether an error says that the host lacks what no plugin and no caller can help: files, memory, threads, room on a disk.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
        || matches!(
            error.kind(),
            ErrorKind::OutOfMemory | ErrorKind::QuotaExceeded | ErrorKind::StorageFull | ErrorKind::WouldBlock
        )
}

/// An error that may hide its reason: if the system has no file to give right now, that is it.
#[cfg(feature = "direct")]
pub(crate) fn or_no_files(error: io::Error) -> io::Error {
    match fs::File::open("/") {
        Err(lack) if is_shortage(&lack) => lack,
        _ => error,
    }
}

/// A shortage for the operator: what was said of it, the system's limit, and what to change.
#[cfg(feature = "direct")]
pub(crate) fn explained(said: impl Display, lack: &io::Error) -> String {
    // Asked for, not read: a process that may open no file has to say so.
    let soft = |resource| match soft_limit(resource) {
        u64::MAX => "unlimited".to_owned(),
        limit => limit.to_string(),
    };
    match (lack.raw_os_error(), lack.kind()) {
        (Some(EMFILE), _) => format!(
            "{said}; this process may open {} files: raise that (ulimit -n), or lower service.max_connections, pool.capacity \
             or engine.max_http_connections",
            soft(Resource::Nofile)
        ),
        (Some(ENFILE), _) => format!("{said}; no process may open more files: raise fs.file-max"),
        (_, ErrorKind::OutOfMemory) => format!(
            "{said}; vm.max_map_count is {}, address space {} (ulimit -v), vm.overcommit_memory {}, and memory {}: raise what \
             is short, or lower pool.capacity, pool.max_instances, limits.memory or limits.compile_memory",
            kernel("vm/max_map_count"),
            soft(Resource::As),
            kernel("vm/overcommit_memory"),
            host_memory::available().map_or_else(|| "unknown".to_owned(), |bytes| Size(bytes).to_string())
        ),
        (_, ErrorKind::WouldBlock) => format!(
            "{said}; this user may have {} processes and threads: raise that (ulimit -u, or pids.max of the control group), \
             or lower pool.build_concurrency",
            soft(Resource::Nproc)
        ),
        (_, ErrorKind::QuotaExceeded | ErrorKind::StorageFull) => format!("{said}; free some room on that disk"),
        _ => said.to_string(),
    }
}

/// The same without the limits, which `direct` brings the means to ask for.
#[cfg(not(feature = "direct"))]
pub(crate) fn explained(said: impl Display, _: &io::Error) -> String {
    said.to_string()
}

/// A limit of this process; the largest number for one that is off.
#[cfg(feature = "direct")]
pub(crate) fn soft_limit(resource: Resource) -> u64 {
    getrlimit(resource).current.unwrap_or(u64::MAX)
}

/// Memory that a process surely gets if it asks for it, as far as that depends on its address space, and on what the system
/// promises where it promises nothing twice (`vm.overcommit_memory = 2`).
#[cfg(feature = "direct")]
pub(crate) fn sure_memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    soft_limit(Resource::As).min(promised(&kernel("vm/overcommit_memory"), &meminfo))
}

/// What is left to be promised, from `/proc/meminfo`.
#[cfg(feature = "direct")]
fn promised(overcommit: &str, meminfo: &str) -> u64 {
    let bytes = |name| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let left = || Some(bytes("CommitLimit")?.saturating_sub(bytes("Committed_AS")?));
    Some(overcommit).filter(|kind| *kind == "2").and_then(|_| left()).unwrap_or(u64::MAX)
}

/// How many processes the system has ended for want of memory since it was started.
#[cfg(feature = "direct")]
pub(crate) fn killed_for_memory() -> u64 {
    let counted = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    counted.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// A setting of the kernel, as it is written below `/proc/sys`.
#[cfg(feature = "direct")]
pub(crate) fn kernel(setting: &str) -> String {
    let value = fs::read_to_string(format!("/proc/sys/{setting}"));
    value.map_or_else(|_| "unknown".to_owned(), |value| value.trim().to_owned())
}

#[cfg(all(test, feature = "direct"))]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_with_the_limit_and_the_settings_that_it_is_about() {
        for (number, limit) in [
            (EMFILE, "lower service.max_connections"),
            (ENFILE, "raise fs.file-max"),
            (12, "vm.max_map_count is "),
            (11, "processes and threads"),
            (28, "room on that disk"),
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert!(is_shortage(&error), "{error}");
            let text = explained("mapping failed", &error);
            assert!(text.starts_with("mapping failed; ") && text.contains(limit), "{text}");
        }
        let other = io::Error::from_raw_os_error(2);
        assert!(!is_shortage(&other));
        assert_eq!(explained("no", &other), "no");
    }

    #[test]
    fn memory_is_surely_given_unless_the_system_promises_nothing_twice() {
        let meminfo = "MemTotal:        4096 kB\nCommitLimit:     2048 kB\nCommitted_AS:    1024 kB\n";
        assert_eq!(promised("0", meminfo), u64::MAX);
        assert_eq!(promised("2", meminfo), 1 << 20);
        assert_eq!(promised("2", &meminfo.replace("1024", "4096")), 0);
        assert_eq!(promised("2", ""), u64::MAX, "a system that says nothing");
    }
}
