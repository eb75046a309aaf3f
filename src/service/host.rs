//! What the settings of a server need of its system, held against what the system gives. The engine does the same for
//! mappings and address space, which pools need everywhere.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    Settings,
    engine::direct::files_of_kept_code,
    host_limits::{soft_limit, sure_memory},
    host_memory,
    units::Size,
};

/// Files of a server that does nothing: its listener, its log, its lock, what tokio needs.
const BASE: u64 = 64;

/// Files of a compile worker, as its owner sees it, and while it is started.
const WORKER: u64 = 8;

/// What the system gives.
#[derive(Debug, Clone, Copy)]
struct Host {
    /// Files that this process may open.
    files: u64,
    /// Bytes that a process surely gets if it asks for them.
    sure_memory: u64,
    /// Bytes that this process and its children may use, if that is known.
    memory: Option<u64>,
}

/// What a server makes of that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fit {
    /// `service.max_connections`, or as many as there are files for.
    pub(super) connections: usize,
    pub(super) warnings: Vec<String>,
}

/// Compares them. Takes as many files as the settings need, if this process may.
///
/// # Errors
///
/// Text that names the setting and the system's limit: nothing would work.
pub(super) fn check(settings: &Settings) -> Result<Fit, String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(files(settings), |most| files(settings).min(most));
    if current.is_some_and(|current| current < wanted) {
        // If that is refused, the limit stays as it is, and is seen below.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
    let files = soft_limit(Resource::Nofile);
    fit(settings, Host { files, sure_memory: sure_memory(), memory: host_memory::available() })
}

/// Files that all that the settings permit needs at once. A runtime has one, with its code or what its memory begins with.
fn files(settings: &Settings) -> u64 {
    let Settings { pool, engine, service, .. } = settings;
    let counts = [service.max_connections, engine.max_http_connections, pool.capacity];
    let counts = counts.iter().fold(BASE, |sum, count| sum.saturating_add(*count as u64));
    let kept = files_of_kept_code(pool, engine);
    counts.saturating_add(kept).saturating_add((pool.build_concurrency as u64).saturating_mul(WORKER))
}

fn fit(settings: &Settings, host: Host) -> Result<Fit, String> {
    let Settings { pool, limits, engine, service, .. } = settings;
    let mut fit = Fit { connections: service.max_connections, warnings: Vec::new() };
    if host.files < BASE {
        let files = host.files;
        return Err(format!(
            "a server needs at least {BASE} files, and this process may open {files} (ulimit -n); raise that"
        ));
    }
    let needed = files(settings);
    if host.files < needed {
        // Those that come in must not take what others need.
        let most = usize::try_from(host.files / 2).unwrap_or(usize::MAX);
        fit.connections = fit.connections.min(most);
        fit.warnings.push(format!(
            "service.max_connections = {}, engine.max_http_connections = {} and pool.capacity = {} need about {needed} files, \
             with engine.code_cache_size = {}, and this process may open {} (ulimit -n): raise that, or lower the settings; until \
             then there are at most {} connections",
            service.max_connections,
            engine.max_http_connections,
            pool.capacity,
            Size(engine.code_cache_size),
            host.files,
            fit.connections
        ));
    }
    if host.sure_memory < limits.compile_memory {
        fit.warnings.push(format!(
            "limits.compile_memory is {}, and the system gives a process {} (ulimit -v, or vm.overcommit_memory = 2): plugins \
             that need more than that to compile are overloaded; lower the setting, or raise the limit",
            Size(limits.compile_memory),
            Size(host.sure_memory)
        ));
    }
    let compiles = limits.compile_memory.saturating_mul(pool.build_concurrency as u64);
    let others = [pool.memory, engine.vars_size, service.body_memory];
    let wanted = others.into_iter().fold(compiles, u64::saturating_add);
    if let Some(memory) = host.memory.filter(|memory| *memory < wanted) {
        fit.warnings.push(format!(
            "limits.compile_memory = {} for each of pool.build_concurrency = {}, with pool.memory = {}, engine.vars_size and \
             service.body_memory, may take {}, and this process may use {} (its control group, or the machine): lower the \
             settings, or the system may end it",
            Size(limits.compile_memory),
            pool.build_concurrency,
            Size(pool.memory),
            Size(wanted),
            Size(memory)
        ));
    }
    Ok(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMPLE: Host = Host { files: 1 << 20, sure_memory: u64::MAX, memory: Some(1 << 40) };

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.pool.build_concurrency = 2;
        settings.pool.memory = 1 << 30;
        settings
    }

    #[test]
    fn an_ample_host_is_nothing_to_warn_of() {
        let ample = Fit { connections: 1024, warnings: vec![] };
        assert_eq!(fit(&settings(), AMPLE), Ok(ample));
        assert_eq!(fit(&settings(), Host { memory: None, ..AMPLE }).unwrap().warnings, [""; 0], "nobody knows");
    }

    #[test]
    fn a_warning_names_the_setting_and_both_numbers() {
        let gib = 1 << 30;
        for (host, said) in [
            (
                Host { files: 1024, ..AMPLE },
                ["service.max_connections = 1024", "about 2640 files", "may open 1024 (ulimit -n)"],
            ),
            (
                Host { sure_memory: gib / 2, ..AMPLE },
                ["limits.compile_memory is 1 GiB", "a process 512 MiB", "ulimit -v"],
            ),
            (Host { memory: Some(2 * gib), ..AMPLE }, ["pool.memory = 1 GiB", "may take 3.8 GiB", "may use 2 GiB"]),
        ] {
            let fit = fit(&settings(), host).unwrap();
            let [warning] = &fit.warnings[..] else { panic!("{fit:?}") };
            assert!(said.iter().all(|said| warning.contains(said)), "{warning}");
        }
    }

    #[test]
    fn connections_leave_half_of_the_files_where_there_are_not_enough() {
        assert_eq!(fit(&settings(), Host { files: 1024, ..AMPLE }).unwrap().connections, 512);
        let mut few = settings();
        few.service.max_connections = 100;
        assert_eq!(fit(&few, Host { files: 500, ..AMPLE }).unwrap().connections, 100);
        let refused = fit(&settings(), Host { files: 40, ..AMPLE }).unwrap_err();
        assert!(refused.contains("at least 64 files") && refused.contains("may open 40 (ulimit -n)"), "{refused}");
    }
}
