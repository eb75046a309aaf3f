//! What becomes of plugins that are not live: builds, the workers that compile, and closes.

use super::{
    Dashboard,
    panel::{heatmap, lines, stat},
    promql::{increase, mean, of, quantile, rate, ratio, sum, sum_by},
};

pub(super) fn dashboard() -> Dashboard {
    let phase = |part| quantile(part, "phase", "evalpool_build_seconds", "");
    let ended = sum(&rate("evalpool_builds_total", ""));
    let failed = sum(&rate("evalpool_builds_total", r#"outcome!~"ok|cancelled""#));
    let symptoms = vec![
        stat("Wait for a build", "short", "Callers that wait for a build now.", "Many for minutes: see 'Compile workers' for whether all are busy, and 'Build phases' for what takes long.")
            .width(6)
            .from(100.0, "yellow")
            .query(sum(&of("evalpool_waiting", r#"for="build""#)), "waiting"),
        stat("Builds", "ops", "Builds that ended, a second.", "More than deploys and new evaluators explain: the pool thrashes, see 'Age at eviction' in the dashboard evalpool.")
            .width(6)
            .query(ended.clone(), "builds"),
        stat("Failed builds", "percentunit", "Share of the builds that failed; those that nobody wanted any more are not counted as failed.", "'Builds by outcome' says why. A new plugin that is refused is its author's; one that ran yesterday is not.")
            .width(6)
            .from(0.05, "yellow")
            .query(ratio(&failed, &ended), "failed"),
        stat("Building, draining", "short", "Runtimes on their way in and out. Both keep a place of the capacity.", "Draining for minutes: a guest or a host function does not end; the log names it.")
            .width(6)
            .query(sum(&of("evalpool_runtimes_live", r#"state="building""#)), "building")
            .query(sum(&of("evalpool_runtimes_live", r#"state="draining""#)), "draining"),
    ];
    let builds = vec![
        lines("Builds by outcome", "ops", "Builds that ended, a second, by outcome. `cancelled`: nobody wanted the runtime any more. Errors that do not occur are not drawn.", "`invalid_plugin`, `entry_point_missing`: the plugin's own. `build_timeout`: raise `limits.build_timeout`, or see the workers below. `overloaded`: the host lacks memory or files. ERRORS.md has each.")
            .stacked()
            .query(sum_by("outcome", &rate("evalpool_builds_total", r#"outcome="ok""#)), "{{outcome}}")
            .query(format!("{} > 0", sum_by("outcome", &rate("evalpool_builds_total", r#"outcome!="ok""#))), "{{outcome}}"),
        lines("Build phases", "s", "What a cold call pays: `fetch` reads the plugin's bytes, `compile` makes code of them, `probe` makes the first instance and runs its initialisers.", "`fetch`: the object store or the network. `compile`: large plugins, busy cores, or a code cache that is too small (`engine.code_cache_size`). `probe`: initialisers; `init = \"once\"` runs them once.")
            .query(phase(0.5), "{{phase}} p50")
            .query(phase(0.99), "{{phase}} p99"),
        heatmap("Compiles", "s", "How many plugins took how long to compile.", "A dark line at `limits.build_timeout` are plugins that never come to be: the log names them.")
            .query(sum_by("le", &increase("evalpool_build_seconds_bucket", r#"phase="compile""#)), "{{le}}"),
        lines("Misses and joins", "ops", "Lookups that began a build (`miss`), and those that found one under way (`coalesced`).", "Many joins for each miss: a plugin that many want is cold; warm it before it is announced (`POST` once, or `EvaluatorPool::warm`).")
            .query(sum_by("result", &rate("evalpool_lookups_total", r#"result=~"miss|coalesced""#)), "{{result}}"),
    ];
    let workers = vec![
        lines("Compile workers", "short", "Processes that compile plugins. Busy ones are at most `pool.build_concurrency`.", "All busy for long: builds wait for one another; look at the compile phase, and raise `pool.build_concurrency` if there are cores to spare.")
            .stacked()
            .query(sum_by("state", &of("evalpool_compile_workers", "")), "{{state}}"),
        lines("Compile workers ended", "ops", "How compile workers ended, a second. `done` is a replacement; `killed`: nobody wanted the build any more.", "`timeout` and `memory`: a plugin was over `limits.build_timeout` or `limits.compile_memory`; the log names its evaluator. `crashed`: look for the system's out-of-memory killer (`dmesg`).")
            .query(sum_by("how", &rate("evalpool_compile_workers_ended_total", "")), "{{how}}"),
        lines("Kernels beside plugins", "ops", "Plugins compiled, a second, whose module does not have Extism's kernel in it: each of their evaluations makes two instances, some microseconds more. Always 0 on the `extism` engine.", "Expected of plugins that are linked with other modules, and where a host function stands in for one of the kernel's. If the time counts, merge what is linked into one module before it is uploaded.")
            .query(sum(&rate("evalpool_kernels_beside_total", "")), "beside"),
    ];
    let closes = vec![
        lines("Closes by reason", "ops", "Runtimes closed, a second, by reason. `invalid`: the guard closed what a failed build had opened. `forced`: calls in flight were interrupted after their grace; drawn only when it happens.", "Forced at a deploy: calls run longer than `pool.grace`; raise it. Forced without one: somebody closes evaluators that are in use.")
            .query(sum_by("reason", &rate("evalpool_closes_total", r#"how="drained""#)), "{{reason}}")
            .query(format!("{} > 0", sum_by("reason, how", &rate("evalpool_closes_total", r#"how="forced""#))), "{{reason}}, {{how}}"),
        lines("Time to close", "s", "From the decision to close a runtime until its last engine object was dropped; draining is part of it.", "Near `pool.grace`, calls are being interrupted; beyond it, something does not end: a host function that blocks, or a caller that neither polls nor drops its evaluation.")
            .query(quantile(0.5, "", "evalpool_close_seconds", ""), "p50")
            .query(quantile(0.99, "", "evalpool_close_seconds", ""), "p99")
            .query(mean("evalpool_close_seconds", ""), "mean"),
    ];
    Dashboard {
        uid: "evalpool-builds",
        title: "evalpool: builds",
        description: "What a cold call waits for: builds by outcome and phase, the workers that compile, and how runtimes close.",
        rows: vec![("At a glance", symptoms), ("Builds", builds), ("Compile workers", workers), ("Closes", closes)],
    }
}
