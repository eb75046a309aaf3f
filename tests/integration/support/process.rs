//! What a process holds of its system, read from `/proc`: this one, or the program when it runs as one of its own.

use std::{env, fs, process::Command, time::Duration};

/// What a process holds. Two of these are compared once everything is closed and idle threads have gone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Held {
    /// Each compiled module that is loaded has at least one.
    pub(crate) executable_mappings: usize,
    pub(crate) threads: usize,
    pub(crate) open_files: usize,
    pub(crate) address_space_gib: usize,
    pub(crate) resident_mib: usize,
}

impl Held {
    pub(crate) fn by_this_process() -> Self {
        Self::by("self")
    }

    /// By the process of this number.
    pub(crate) fn by_process(id: u32) -> Self {
        Self::by(&id.to_string())
    }

    fn by(process: &str) -> Self {
        let entries =
            |folder: &str| fs::read_dir(format!("/proc/{process}/{folder}")).expect("Linux has /proc").count();
        let text = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).expect("Linux has /proc");
        let is_executable = |line: &&str| line.split_whitespace().nth(1).is_some_and(|mode| mode.contains('x'));
        let statm = text("statm");
        // In pages of 4 KiB: all, then those that are resident.
        let pages: Vec<usize> = statm.split_whitespace().map_while(|field| field.parse().ok()).collect();
        Self {
            executable_mappings: text("maps").lines().filter(is_executable).count(),
            threads: entries("task"),
            open_files: entries("fd"),
            address_space_gib: pages[0] * 4 / 1024 / 1024,
            resident_mib: pages[1] * 4 / 1024,
        }
    }
}

/// Of this process.
fn executable_mappings() -> usize {
    Held::by_this_process().executable_mappings
}

/// Of this process.
fn threads() -> usize {
    Held::by_this_process().threads
}

/// Of this process.
pub(crate) fn resident_mib() -> usize {
    Held::by_this_process().resident_mib
}

/// The most that has been resident of this process at any moment.
pub(crate) fn peak_mib() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    peak.map(|kib: usize| kib / 1024).expect("Linux counts it")
}

/// Whether the process of this number has a handler of its own for the signal of this number.
pub(crate) fn catches(process: u32, signal: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("Linux has /proc");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).expect("a mask of signals");
    caught >> (signal - 1) & 1 == 1
}

/// The executable mappings and threads of this process, once neither has changed for half a second: idle threads end when
/// the machine comes to it.
pub(crate) async fn settled() -> (usize, usize) {
    let now = || (executable_mappings(), threads());
    let (mut held, mut same) = (now(), 0);
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = std::mem::replace(&mut held, now());
        same = if held == before { same + 1 } else { 0 };
    }
    held
}

/// What the allocator keeps back for later is not held by anybody: with these in its environment, it keeps little.
pub(crate) const FRUGAL: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "65536")];

/// Runs the named test once more in a process of its own, and says whether this is that process. Elsewhere it fails if
/// the test failed there.
pub(crate) fn alone(test: &str) -> bool {
    const MARK: &str = "EVALPOOL_TEST_ALONE";
    if env::var_os(MARK).is_some() {
        return true;
    }
    let this = env::current_exe().expect("a test knows its own binary");
    let mut again = Command::new(this);
    again.args(["--exact", test, "--include-ignored", "--nocapture"]).env(MARK, "1");
    again.envs(FRUGAL);
    let status = again.status();
    assert!(status.expect("the test binary can be started again").success(), "{test} failed in its own process");
    false
}

/// A runtime whose idle blocking threads end at once, so that threads can be counted.
pub(crate) fn forgetful_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_millis(20))
        .enable_all()
        .build()
        .expect("the system gives a test its threads")
}
