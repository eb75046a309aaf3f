//! The most memory that something takes of this process.

use std::fs;

/// What was resident when it began, in bytes.
pub struct Peak(u64);

impl Peak {
    /// Begins anew, at what is resident now. `None` where the system does not count.
    #[must_use]
    pub fn begin() -> Option<Self> {
        // Resets the peak: see proc(5).
        fs::write("/proc/self/clear_refs", "5").ok()?;
        Some(Self(read("VmRSS:")?))
    }

    /// How far it has gone up meanwhile, in bytes.
    #[must_use]
    pub fn growth(&self) -> u64 {
        read("VmHWM:").unwrap_or(0).saturating_sub(self.0)
    }
}

fn read(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
}
