//! The server around the pool: clients, and the process.

use super::{
    Dashboard,
    panel::{lines, stat},
    promql::{of, rate, ratio, sum, sum_by},
};

pub(super) fn dashboard() -> Dashboard {
    let clients = vec![
        stat("Up", "short", "Instances of the server that Prometheus reaches.", "Fewer than there should be: the process is gone, does not listen, or wants a token that Prometheus does not have.")
            .width(6)
            .query(sum(&of("up", "")), "up"),
        stat("Connections", "short", "Connections of clients that are open.", "At `service.max_connections`, each new one ends the one that is idle longest. Clients that open one for each call should keep theirs.")
            .width(6)
            .query(sum(&of("evalpool_http_connections", "")), "open"),
        stat("Bodies in memory", "bytes", "Bytes of request bodies and answers in memory, of `service.body_memory`.", "At the bound, uploads and large inputs wait; clients that are slower than `service.transfer_rate` give way.")
            .width(6)
            .query(sum(&of("evalpool_http_body_bytes", "")), "held"),
        stat("Age of the youngest process", "s", "How long the server that was started last has run.", "Small without a deploy: it ends by itself; the system's log says why (`journalctl`, `dmesg`).")
            .width(6)
            .query("time() - max(process_start_time_seconds{job=~\"$job\", instance=~\"$instance\"})", "runs"),
        lines("Connections", "short", "Connections of clients that are open, by instance of the server.", "One has far more than the others: the balancer in front does not share evenly.")
            .query(sum_by("instance", &of("evalpool_http_connections", "")), "{{instance}}"),
        lines("Bodies in memory", "bytes", "Bytes of request bodies and answers in memory, by instance of the server.", "A plateau at `service.body_memory`: lower `limits.input_size`, or give it more.")
            .query(sum_by("instance", &of("evalpool_http_body_bytes", "")), "{{instance}}"),
    ];
    let process = vec![
        lines("Memory", "bytes", "Resident memory of each process.", "A steady rise with a flat number of runtimes is a leak: tell us, with `/metrics` from before and after.")
            .query(of("process_resident_memory_bytes", ""), "{{instance}}"),
        lines("CPU", "percentunit", "Processor time that each process uses; 100 % is one core. Counted in whole seconds, so short ranges look stepped.", "All cores for long: guests (dashboard Evaluators and tenants) or compiles (dashboard Builds) take them.")
            .query(rate("process_cpu_seconds_total", ""), "{{instance}}"),
        lines("Threads", "short", "Threads of each process. Guests that block, plugins that compile in process and runtimes that close hold one each; tokio starts at most 512 for them.", "Hundreds for long: host functions block, or the disk is slow.")
            .query(of("process_threads", ""), "{{instance}}"),
        lines("Open files", "short", "Open file descriptors of each process, below the most that it may have. Every connection is one, and large code is.", "Near the limit no connection is accepted and no plugin is read: raise it (`LimitNOFILE`, `ulimit -n`), or lower `service.max_connections`.")
            .query(of("process_open_fds", ""), "{{instance}}")
            .bound(format!("min({} > 0)", of("process_max_fds", "")), "limit"),
    ];
    let answered = |status: &str| sum(&rate("evalpool_http_requests_total", &format!("status=\"{status}\"")));
    let all = sum(&rate("evalpool_http_requests_total", ""));
    let requests = vec![
        lines("Requests by status", "ops", "Requests to `/v1` that ended, a second, by the class of their status; `left`: the client left before it was answered.", "`5xx`: the server's own, see 'Failures by kind' in the dashboard evalpool. `4xx`: plugins that fail, quotas and saturation are among them, and clients that ask for what is not there. `left`: clients give up sooner than the server answers.")
            .stacked()
            .colour("2xx", "green")
            .colour("5xx", "red")
            .query(sum_by("status", &rate("evalpool_http_requests_total", "")), "{{status}}"),
        lines("Share of failures", "percentunit", "Share of the requests that the server failed (`5xx`), that it refused or whose plugin failed (`4xx`), and whose client left.", "Compare the latencies in the dashboard evalpool with the clients' timeouts if many leave; each error kind's status is in ERRORS.md.")
            .max(1.0)
            .query(ratio(&answered("5xx"), &all), "5xx")
            .query(ratio(&answered("4xx"), &all), "4xx")
            .query(ratio(&answered("left"), &all), "left"),
    ];
    Dashboard {
        uid: "evalpool-http",
        title: "evalpool: HTTP",
        description: "The server around the pool: its clients, and its process.",
        rows: vec![("Requests", requests), ("Clients", clients), ("Process", process)],
    }
}
