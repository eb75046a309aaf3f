//! What this process holds of its system, read from `/proc`.

use std::{env, fs, process::Command};

/// Executable mappings: each compiled module that is loaded has at least one.
pub(crate) fn executable_mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux has /proc");
    maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|mode| mode.contains('x'))).count()
}

/// Open files.
pub(crate) fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").expect("Linux has /proc").count()
}

/// Resident memory, in MiB.
pub(crate) fn resident_mib() -> usize {
    statm(1) * 4 / 1024
}

/// Address space, in GiB.
pub(crate) fn address_space_gib() -> usize {
    statm(0) * 4 / 1024 / 1024
}

/// A field of `/proc/self/statm`, in pages of 4 KiB.
fn statm(field: usize) -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    statm.split_whitespace().nth(field).and_then(|pages| pages.parse().ok()).expect("statm holds numbers")
}

/// Threads of this process.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("Linux has /proc").count()
}

/// Runs the named test once more in a process of its own, and says whether this is that process. Elsewhere it fails if
/// the test failed there.
pub(crate) fn alone(test: &str) -> bool {
    const MARK: &str = "EVALPOOL_TEST_ALONE";
    if env::var_os(MARK).is_some() {
        return true;
    }
    let this = env::current_exe().expect("a test knows its own binary");
    let mut again = Command::new(this);
    again.args(["--exact", test, "--nocapture"]).env(MARK, "1");
    // What the allocator keeps back for later is not held by anybody: have it keep little.
    again.env("MALLOC_ARENA_MAX", "1").env("MALLOC_TRIM_THRESHOLD_", "65536");
    let status = again.status();
    assert!(status.expect("the test binary can be started again").success(), "{test} failed in its own process");
    false
}

/// A runtime whose idle blocking threads end at once, so that threads can be counted.
pub(crate) fn forgetful_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(std::time::Duration::from_millis(20))
        .enable_all()
        .build()
        .expect("the system gives a test its threads")
}
