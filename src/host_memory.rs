//! How much memory this process may use: what its control group allows, or else what the machine has.

use std::{fs, path::Path};

/// In bytes. Nothing where the system does not say it, as elsewhere than on Linux. Reads a few files.
pub(crate) fn available() -> Option<u64> {
    below(Path::new("/"))
}

/// The same, with the system's files below a folder.
fn below(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let of_machine = read("proc/meminfo").and_then(|text| {
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        total.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = read("proc/self/cgroup").unwrap_or_default();
    let of_groups = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        match (parts.next()?, parts.next()?, parts.next()?) {
            ("0", "", group) => lowest(&root.join("sys/fs/cgroup"), group, "memory.max"),
            (_, of, group) if of.split(',').any(|each| each == "memory") => {
                lowest(&root.join("sys/fs/cgroup/memory"), group, "memory.limit_in_bytes")
            }
            _ => None,
        }
    });
    of_groups.chain(of_machine).min()
}

/// The lowest limit of a group and those around it. A container may see the groups from its own one on, under the name
/// that they have outside: then only the outermost is found.
fn lowest(mounted: &Path, group: &str, file: &str) -> Option<u64> {
    let groups = Path::new(group.trim_start_matches('/')).ancestors();
    groups.filter_map(|group| fs::read_to_string(mounted.join(group).join(file)).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        below(root.path())
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:        4096 kB\nMemFree:          100 kB\n");

    #[test]
    fn without_a_limit_it_is_what_the_machine_has() {
        assert_eq!(with(&[]), None, "a system that says nothing");
        assert_eq!(with(&[MACHINE]), Some(4 << 20));
        let group = ("proc/self/cgroup", "0::/a\n");
        assert_eq!(with(&[MACHINE, group]), Some(4 << 20));
        assert_eq!(with(&[MACHINE, group, ("sys/fs/cgroup/a/memory.max", "max\n")]), Some(4 << 20));
        let old = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(with(&[MACHINE, ("proc/self/cgroup", "9:memory:/a\n"), old]), Some(4 << 20));
        assert!(available().is_none_or(|bytes| bytes > 64 << 20), "this machine");
    }

    #[test]
    fn the_lowest_limit_of_the_groups_around_the_process_counts() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let outer = ("sys/fs/cgroup/a/memory.max", "1000\n");
        let inner = |limit| ("sys/fs/cgroup/a/b/memory.max", limit);
        assert_eq!(with(&[MACHINE, group, outer, inner("max\n")]), Some(1000));
        assert_eq!(with(&[MACHINE, group, outer, inner("900\n")]), Some(900));
        assert_eq!(with(&[group, outer, inner("2000\n")]), Some(1000));
    }

    #[test]
    fn a_container_that_sees_its_own_group_as_the_outermost_finds_its_limit() {
        let own = ("sys/fs/cgroup/memory.max", "1000\n");
        assert_eq!(with(&[MACHINE, ("proc/self/cgroup", "0::/\n"), own]), Some(1000));
        let old = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n");
        let groups = ("proc/self/cgroup", "12:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n0::/docker/x\n");
        assert_eq!(with(&[MACHINE, groups, old]), Some(2000));
        assert_eq!(with(&[MACHINE, groups, old, own]), Some(1000));
    }
}
