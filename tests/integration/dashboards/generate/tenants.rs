//! Who uses it, and who fails.

use super::{
    Dashboard,
    panel::{Panel, lines},
    promql::{of, rate, ratio, sum_by},
};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        uid: "evalpool-tenants",
        title: "evalpool: evaluators and tenants",
        description: "Who takes the processors and the memory, whose calls fail, and who is refused. Needs metrics.per_tenant and metrics.per_evaluator.",
        rows: vec![
            ("Tenants", row("tenant", "tenants", "The dashboard is empty: set `metrics.per_tenant`.")),
            ("Evaluators", row("evaluator", "evaluators", "The row is empty: set `metrics.per_evaluator`.")),
        ],
    }
}

/// The same of both. Only those that used the most have a series, so every query names all there are.
fn row(label: &'static str, all: &str, empty: &str) -> Vec<Panel> {
    let legend = if label == "tenant" { "{{tenant}}" } else { "{{evaluator}}" };
    let with_outcome = if label == "tenant" { "{{tenant}}, {{outcome}}" } else { "{{evaluator}}, {{outcome}}" };
    let name = |what: &str| format!("evalpool_{label}_{what}");
    let by = |what: &str, matchers: &str| sum_by(label, &rate(&name(what), matchers));
    let shows = |what: &str| {
        format!("{what}, for each of the {all} with the most processor time, and for all others together (`other`).")
    };
    vec![
        lines("Processor time", "percentunit", &shows("How much of the processors guests take; 100 % is one core"), &format!("One takes most of it and the others wait: bound it with `tenants.named.NAME.cpu_per_second`, or lower its weight. {empty}"))
            .width(8)
            .stacked()
            .query(by("exec_seconds_total", ""), legend),
        lines("Evaluations", "ops", &shows("Evaluations that ended, a second"), "One grows and the others do not: its client retries without a pause, or has an endless loop.")
            .width(8)
            .stacked()
            .query(by("evaluations_total", ""), legend),
        lines("Time of an evaluation", "s", &shows("How long an evaluation takes on average, its wait included"), "One alone is slow: its plugin is, or what that calls. All are: see Wait and Execution in the dashboard evalpool.")
            .width(8)
            .query(ratio(&by("seconds_total", ""), &by("evaluations_total", "")), legend),
        lines("Failures", "ops", &shows("Evaluations that failed, a second, by kind"), "`guest_*`, `exec_timeout`, `out_of_*`: its plugin. `GET /v1/evaluators/NAME` says which, the answer's `detail` why; with `debug` in its spec it has the guest's last words and stack.")
            .width(8)
            .stacked()
            .query(
                format!("{} > 0", sum_by(&format!("{label}, outcome"), &rate(&name("evaluations_total"), r#"outcome!~"ok|cancelled|quota_exceeded""#))),
                with_outcome,
            ),
        lines("Refused for a quota", "ops", &shows("Evaluations refused since the tenant is at a bound of its own, a second"), "The answer names the bound. Raise it in `[tenants.named.\"NAME\"]` and send SIGHUP, or leave it: no other tenant notices.")
            .width(8)
            .query(by("evaluations_total", r#"outcome="quota_exceeded""#), legend),
        lines("Refused for the pool", "ops", &shows("Evaluations refused since the pool is too small or the host lacks something, a second"), "All of them alike: the pool is too small, see the dashboard Capacity. One alone: it calls far more at once than `pool.max_instances_per_evaluator` serves.")
            .width(8)
            .query(by("evaluations_total", r#"outcome=~"saturated|wait_timeout|overloaded""#), legend),
        lines("Runtimes", "short", &shows("Runtimes that exist"), "One has most of the capacity and evictions are young: it makes the pool thrash. Bound it with `tenants.named.NAME.runtimes`.")
            .stacked()
            .query(sum_by(label, &of(&name("runtimes"), "")), legend),
        lines("Memory", "bytes", &shows("What runtimes hold, shared code in full for each that shares it"), "One holds most of `pool.memory`: bound it with `tenants.named.NAME.memory`, or lower `limits.memory` in its spec.")
            .stacked()
            .query(sum_by(label, &of(&name("memory_bytes"), "")), legend),
    ]
}
