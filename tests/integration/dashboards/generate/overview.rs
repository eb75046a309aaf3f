//! Is it well, and if not, where to look next.

use super::{
    Dashboard,
    panel::{Panel, gauge, lines, stat},
    promql::{mean, of, quantile, rate, ratio, sum, sum_by},
};

/// What counts against the server: the others are the plugins' own fault, or their callers'.
pub(super) const OWN_FAULT: &str = r#"outcome=~"saturated|wait_timeout|overloaded|internal|shutting_down""#;

pub(super) fn dashboard() -> Dashboard {
    let all = sum(&rate("evalpool_evaluations_total", ""));
    let failed = sum(&rate("evalpool_evaluations_total", r#"outcome!~"ok|cancelled""#));
    let own = sum(&rate("evalpool_evaluations_total", OWN_FAULT));
    let latency = |part, phase: &str| quantile(part, "", "evalpool_evaluation_seconds", &format!("phase=\"{phase}\""));
    let at_a_glance = vec![
        stat("Evaluations", "ops", "Evaluations that ended, a second, whatever their outcome.", "None at all: look whether clients still reach it (dashboard HTTP). Far more than usual: which tenant (dashboard Evaluators and tenants).")
            .width(3)
            .query(all.clone(), "evaluations"),
        stat("Refused or broken", "percentunit", "Share of the evaluations that the server itself failed: saturated, wait_timeout, overloaded, internal, shutting_down.", "Go on with 'Failures by kind' below: each word is explained in ERRORS.md.")
            .from(0.001, "yellow")
            .from(0.01, "red")
            .query(ratio(&own, &all), "refused"),
        stat("Errors", "percentunit", "Share of the evaluations that failed, the plugins' own failures included; those whose caller left are not counted as failed. 0 when there are none.", "If the share to the left is small, plugins fail: 'Failures by kind' says how, and the dashboard Evaluators and tenants whose they are.")
            .width(3)
            .from(0.05, "yellow")
            .from(0.25, "red")
            .query(ratio(&failed, &all), "errors"),
        stat("Latency, p99", "s", "What 99 of 100 evaluations stay below: before the guest runs (compiling and probing not included), and in the guest.", "Wait is long: the row 'Who waits'. Exec is long: the plugins are slow, or the processors are busy (dashboard HTTP, row Process).")
            .from(1.0, "yellow")
            .from(5.0, "red")
            .query(latency(0.99, "wait"), "wait")
            .query(latency(0.99, "exec"), "exec"),
        stat("Waiting", "short", "Callers that wait now: for a runtime's place, for an instance, or for a build in progress.", "A few are normal while plugins are built. More and more: 'Waiting by cause' says for what.")
            .width(3)
            .from(100.0, "yellow")
            .from(1000.0, "red")
            .query(sum(&of("evalpool_waiting", "")), "waiting"),
        gauge("Capacity in use", "percentunit", "Runtimes that exist, of those that may.", "Full is what a cache is for: it is trouble only together with callers that wait, or with young evictions.")
            .from(0.9, "yellow")
            .query(ratio(&sum(&of("evalpool_runtimes_live", "")), &sum(&of("evalpool_runtimes_capacity", ""))), "in use"),
        stat("Evaluators", "short", "Evaluators registered by name, live or cold.", "Fewer than before: somebody deleted some; the log has a line for each change.")
            .width(3)
            .query(sum(&of("evalpool_evaluators_registered", "")), "registered"),
    ];
    let symptoms = vec![
        lines("Evaluations", "ops", "Evaluations that ended, a second: those that succeeded, and those that did not.", "Red grows with the load: something is too small, see 'Failures by kind'. Red alone: a plugin or what it calls is broken. Blue: clients give up first; compare their timeout with the latencies below.")
            .stacked()
            .colour("ok", "green")
            .colour("failed", "red")
            .colour("cancelled", "blue")
            .query(sum(&rate("evalpool_evaluations_total", r#"outcome="ok""#)), "ok")
            .query(failed, "failed")
            .query(sum(&rate("evalpool_evaluations_total", r#"outcome="cancelled""#)), "cancelled"),
        lines("Failures by kind", "ops", "Evaluations that did not succeed, a second, by error kind.", "`guest_*`, `exec_timeout` and `out_of_*` are the plugins' own: tell their tenants. `quota_exceeded` is a tenant's own bound. `saturated` and `wait_timeout`: the pool is too small, see 'Who waits'. `overloaded`: the host lacks memory, files or threads. `internal` is a bug here: the log has its cause.")
            .stacked()
            .query(format!("{} > 0", sum_by("outcome", &rate("evalpool_evaluations_total", r#"outcome!="ok""#))), "{{outcome}}"),
        lines("Wait", "s", "How long evaluations waited for a place, for an instance, and for that to be made when none was ready; a cold one also for its plugin's bytes. Compiling and probing are not included.", "Near `limits.wait_timeout` callers are refused. 'Waiting by cause' says for what they wait; p99 alone, with a hit ratio below 1, are cold calls.")
            .query(latency(0.5, "wait"), "p50")
            .query(latency(0.9, "wait"), "p90")
            .query(latency(0.99, "wait"), "p99")
            .query(mean("evalpool_evaluation_seconds", r#"phase="wait""#), "mean")
            .query(format!("max({})", of("evalpool_oldest_wait_seconds", "")), "waits longest now"),
        lines("Execution", "s", "How long guests ran, from handing a call over to having it back; failures included. `limits.exec_timeout` bounds it.", "All lines rise together with the processor at its end: too few cores. Only p99: one evaluator is slow, see the dashboard Evaluators and tenants.")
            .query(latency(0.5, "exec"), "p50")
            .query(latency(0.9, "exec"), "p90")
            .query(latency(0.99, "exec"), "p99")
            .query(mean("evalpool_evaluation_seconds", r#"phase="exec""#), "mean"),
    ];
    let who_waits = vec![
        lines("Waiting by cause", "short", "Callers that wait: for a runtime's place (`capacity`), for an instance of a live runtime (`instance`), or for a build (`build`: one in progress, or one that cannot compile yet because `pool.build_concurrency` compile).", "`capacity`: raise `pool.capacity`, see the dashboard Capacity. `instance`: raise `pool.max_instances_per_evaluator` or `pool.max_instances`. `build`: see the dashboard Builds.")
            .width(8)
            .stacked()
            .query(sum_by("for", &of("evalpool_waiting", "")), "{{for}}"),
        lines("Lookups by result", "ops", "Lookups of a runtime, a second: found (`hit`), to be built (`miss`), joined to a build in progress (`coalesced`), or `refused` at once.", "Many misses while the number of evaluators stays as it is: the pool thrashes, see 'Age at eviction'. Refused: `pool.max_waiting` callers wait already, or a failed build is remembered for `pool.negative_ttl`.")
            .width(8)
            .stacked()
            .query(sum_by("result", &rate("evalpool_lookups_total", "")), "{{result}}"),
        lines("Hit ratio", "percentunit", "Share of the lookups that needed no build of their own: they found a runtime, or joined a build in progress. 0 when there are no lookups.", "It stays high for long while a pool thrashes: the age at eviction shows that earlier. The dashboard Capacity tells what it would be at other capacities.")
            .width(8)
            .max(1.0)
            .query(ratio(&sum(&rate("evalpool_lookups_total", r#"result=~"hit|coalesced""#)), &sum(&rate("evalpool_lookups_total", ""))), "hits"),
    ];
    Dashboard {
        uid: "evalpool",
        title: "evalpool",
        description: "Is the pool well: what callers see, who waits, and what causes it.",
        rows: vec![
            ("At a glance", at_a_glance),
            ("What callers see", symptoms),
            ("Who waits", who_waits),
            ("What causes it", causes()),
        ],
    }
}

/// What makes callers wait, and plugins be compiled again.
fn causes() -> Vec<Panel> {
    vec![
        lines("Runtimes by state", "short", "Runtimes by what they are doing, below the most that may exist.", "One that stays draining has a caller that does not return, or a host function that blocks. Many that are building: see the dashboard Builds.")
            .width(8)
            .stacked()
            .query(sum_by("state", &of("evalpool_runtimes_live", "")), "{{state}}")
            .bound(sum(&of("evalpool_runtimes_capacity", "")), "capacity"),
        lines("Evictions by reason", "ops", "Runtimes evicted, a second: for a newcomer (`capacity`), for room in bytes (`memory`), or after `pool.idle_ttl` without a call (`idle`).", "Only `idle` is free of charge. `capacity` with a young age: raise `pool.capacity`. `memory`: raise `pool.memory`, or find who holds it in the dashboard Evaluators and tenants.")
            .width(8)
            .query(sum_by("reason", &rate("evalpool_evictions_total", "")), "{{reason}}"),
        lines("Age at eviction", "s", "Time since the last use of what was evicted. No line: nothing was evicted.", "Seconds mean thrashing: plugins are compiled again as soon as they are closed, and the capacity is too small. The dashboard Capacity tells which would be enough.")
            .width(8)
            .query(quantile(0.1, "", "evalpool_eviction_age_seconds", ""), "p10")
            .query(quantile(0.5, "", "evalpool_eviction_age_seconds", ""), "p50")
            .query(quantile(0.9, "", "evalpool_eviction_age_seconds", ""), "p90"),
        lines("Memory held", "bytes", "What runtimes hold, by what it is for: code that is loaded, instances as large as they are now, and code that is kept for the next build. The line is `pool.memory`.", "At the line all the time, with evictions for `memory`: it is too small, or instances are too large (`limits.memory`). Above it: guests have grown while they ran, and others give way next.")
            .stacked()
            .query(sum_by("kind", &of("evalpool_memory_bytes", "")), "{{kind}}")
            .bound(sum(&of("evalpool_memory_limit_bytes", "")), "limit"),
        lines("Instances discarded by reason", "ops", "Instances dropped rather than given back, a second. `used` is what `isolation = \"fresh\"` does after each evaluation; `max_uses` is the end of a reused one.", "The others are trouble that stayed in its instance: `trap`, `timeout`, `panic`. Whose, the dashboard Evaluators and tenants tells.")
            .query(sum_by("reason", &rate("evalpool_instances_discarded_total", "")), "{{reason}}"),
    ]
}
