//! The standard Prometheus metrics of a process, read from `/proc`.
//!
//! A value that the system does not give is left out. A limit that is off is shown as 0.

use std::{fs, sync::LazyLock};

use metrics::Unit;
use rustix::param::{clock_ticks_per_second, page_size};

/// Each metric's name, unit and help, in the order of [`values`]. The first is a counter, the others are gauges.
const METRICS: [(&str, Unit, &str); 8] = [
    ("process_cpu_seconds_total", Unit::Seconds, "Total user and system CPU time spent in seconds."),
    ("process_open_fds", Unit::Count, "Number of open file descriptors."),
    ("process_max_fds", Unit::Count, "Maximum number of open file descriptors."),
    ("process_virtual_memory_bytes", Unit::Bytes, "Virtual memory size in bytes."),
    ("process_virtual_memory_max_bytes", Unit::Bytes, "Maximum amount of virtual memory available in bytes."),
    ("process_resident_memory_bytes", Unit::Bytes, "Resident memory size in bytes."),
    ("process_start_time_seconds", Unit::Seconds, "Start time of the process since unix epoch in seconds."),
    ("process_threads", Unit::Count, "Number of OS threads in the process."),
];

/// Reads every value and gives it to the recorder that is installed. Blocks while it reads a few files of `/proc`.
pub fn publish() {
    for (at, ((name, unit, help), value)) in METRICS.into_iter().zip(values()).enumerate() {
        match value {
            None => {}
            Some(value) if at == 0 => {
                metrics::describe_counter!(name, unit, help);
                metrics::counter!(name).absolute(value);
            }
            Some(value) => {
                metrics::describe_gauge!(name, unit, help);
                metrics::gauge!(name).set(value as f64);
            }
        }
    }
}

/// Resident memory of this process, in bytes.
pub(super) fn resident_memory() -> Option<u64> {
    pages(&read("/proc/self/statm"), RESIDENT)
}

/// When the machine started, in seconds since the Unix epoch. Read once: it moves when the clock is set, and a process
/// must not seem to start anew.
static BOOTED: LazyLock<Option<u64>> = LazyLock::new(|| boot_time(&read("/proc/stat")));

fn values() -> [Option<u64>; 8] {
    let [stat, memory, limits] = ["/proc/self/stat", "/proc/self/statm", "/proc/self/limits"].map(read);
    let used = || seconds(field(&stat, USER)?.checked_add(field(&stat, SYSTEM)?)?);
    let started = || seconds(field(&stat, STARTED)?)?.checked_add((*BOOTED)?);
    [
        used(),
        open_files(),
        soft_limit(&limits, "Max open files"),
        pages(&memory, VIRTUAL),
        soft_limit(&limits, "Max address space"),
        pages(&memory, RESIDENT),
        started(),
        field(&stat, THREADS),
    ]
}

/// A file of `/proc`; nothing if it cannot be read. A program's name in it need not be UTF-8.
fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Without the descriptor that reads the folder.
fn open_files() -> Option<u64> {
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

// Fields of `/proc/self/stat`, numbered as proc(5) does.
const USER: usize = 14;
const SYSTEM: usize = 15;
const THREADS: usize = 20;
const STARTED: usize = 22;

/// A field of `/proc/self/stat` from the third on. The second, the program's name in parentheses, may hold spaces and
/// parentheses itself, so that fields are counted from the last `)`.
fn field(stat: &str, number: usize) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(number - 3)?.parse().ok()
}

// Fields of `/proc/self/statm`, from 0.
const VIRTUAL: usize = 0;
const RESIDENT: usize = 1;

/// A field of `/proc/self/statm`, in bytes.
fn pages(statm: &str, at: usize) -> Option<u64> {
    statm.split_whitespace().nth(at)?.parse::<u64>().ok()?.checked_mul(page_size() as u64)
}

fn seconds(ticks: u64) -> Option<u64> {
    ticks.checked_div(clock_ticks_per_second())
}

/// A soft limit of `/proc/self/limits`; 0 when it is off.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match values.split_whitespace().next()? {
        "unlimited" => Some(0),
        number => number.parse().ok(),
    }
}

/// From `/proc/stat`.
fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn every_metric_is_published_with_its_help_and_its_type() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, publish);
        let text = recorder.handle().render();
        for (name, _, help) in METRICS {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            assert!(text.contains(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} ")), "{name}: {text}");
        }
        assert!(resident_memory().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn fields_are_counted_after_the_programs_name_whatever_it_is() {
        for name in ["evalpool", "a b", ") R 1 (", "((", "))", ""] {
            let stat = format!("7 ({name}) S 1 7 7 0 -1 64 9 0 0 0 1234 56 0 0 20 0 18 0 4567 313344 389 0\n");
            let fields = [USER, SYSTEM, THREADS, STARTED].map(|number| field(&stat, number));
            assert_eq!(fields, [Some(1234), Some(56), Some(18), Some(4567)], "{name:?}");
        }
    }

    #[test]
    fn values_are_in_their_base_units_and_a_limit_that_is_off_is_0() {
        let page = page_size() as u64;
        assert_eq!(pages("765 432 405 5 0 123 0\n", VIRTUAL), Some(765 * page));
        assert_eq!(pages("765 432 405 5 0 123 0\n", RESIDENT), Some(432 * page));
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 1048576              files     \n\
                      Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max address space"), Some(0));
        assert_eq!(boot_time("cpu  1 2 3\nctxt 9\nbtime 1700000000\nprocesses 5\n"), Some(1_700_000_000));
    }

    #[test]
    fn what_cannot_be_understood_is_left_out() {
        for text in ["", "\n", "7", "7 (a", "7 (a)", "7 (a) S", "x y z", "btime", "btime x", "-1 -1", "Max open files"]
        {
            assert_eq!(field(text, USER), None, "{text:?}");
            assert_eq!(pages(text, RESIDENT), None, "{text:?}");
            assert_eq!(soft_limit(text, "Max open files"), None, "{text:?}");
            assert_eq!(boot_time(text), None, "{text:?}");
        }
        assert_eq!(pages("18446744073709551615 0", VIRTUAL), None, "more bytes than there can be");
    }
}
