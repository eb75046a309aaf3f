//! How large it has to be.

use super::{
    Dashboard,
    panel::{gauge, heatmap, lines},
    promql::{increase, of, rate, ratio, sum, sum_by},
};

pub(super) fn dashboard() -> Dashboard {
    let thrash = vec![
        heatmap("Ages at eviction", "s", "How many runtimes were evicted at which age: the time since they were last used.", "What is dark near the bottom is thrashing: raise `pool.capacity`, or `pool.memory` if that is the reason to the right.")
            .query(sum_by("le", &increase("evalpool_eviction_age_seconds_bucket", "")), "{{le}}"),
        lines("Age at eviction, by reason", "ops", "Runtimes evicted, a second, for a newcomer (`capacity`) and for room in bytes (`memory`).", "The higher of the two says which setting is too small. Both 0: nothing is.")
            .query(sum_by("reason", &rate("evalpool_evictions_total", r#"reason=~"capacity|memory""#)), "{{reason}}"),
    ];
    let room = vec![
        gauge("Runtimes", "percentunit", "Runtimes that exist, of `pool.capacity`.", "Full is normal once more plugins are used than fit.")
            .from(0.9, "yellow")
            .query(ratio(&sum(&of("evalpool_runtimes_live", "")), &sum(&of("evalpool_runtimes_capacity", ""))), "in use"),
        gauge("Memory", "percentunit", "Bytes that runtimes hold, of `pool.memory`.", "Above 100 %, guests have grown while they ran, and unused runtimes give way.")
            .from(0.9, "yellow")
            .from(1.0, "red")
            .query(ratio(&sum(&of("evalpool_memory_bytes", "")), &sum(&of("evalpool_memory_limit_bytes", ""))), "held"),
        lines("Memory in use", "percentunit", "How much of `pool.memory` each instance of the server holds.", "Near 100 % is normal once more plugins are used than fit. One instance far above the others: its load is not shared evenly; route by evaluator.")
            .width(8)
            .query(ratio(&sum_by("instance", &of("evalpool_memory_bytes", "")), &sum_by("instance", &of("evalpool_memory_limit_bytes", ""))), "{{instance}}"),
        lines("Memory of a runtime", "bytes", "Bytes of code and instances for each runtime that exists, on average.", "Times `pool.capacity`, it is what `pool.memory` should be; what is kept for the next build comes on top.")
            .width(8)
            .query(ratio(&sum(&of("evalpool_memory_bytes", r#"kind=~"code|instances""#)), &sum(&of("evalpool_runtimes_live", ""))), "each"),
    ];
    let instances = vec![
        lines("Instances by state", "short", "Sandboxed guests that exist: waiting for an evaluation, and in one (or being made or given back).", "Busy near `pool.max_instances`: evaluations wait for each other. Raise it, or `pool.max_instances_per_evaluator` if one evaluator has the load.")
            .width(8)
            .stacked()
            .query(sum_by("state", &of("evalpool_instances_live", "")), "{{state}}"),
        lines("Slots held", "short", "Slots of the `direct` engine that instances hold, by what they are of. 0 when nothing is live, and always on the `extism` engine.", "Bounded by `pool.max_instances`. Held while nothing runs: an instance does not end, see 'Time to close' in the dashboard Builds.")
            .width(8)
            .query(sum_by("kind", &of("evalpool_slots_live", "")), "{{kind}}"),
        lines("Slots kept warm", "short", "Slots of the `direct` engine that are free and still mapped, ready for the next instance of the same plugin.", "They are what makes fresh instances cheap. None under load: more plugins take turns than slots stay warm.")
            .width(8)
            .query(sum_by("kind", &of("evalpool_slots_warm", "")), "{{kind}}"),
    ];
    Dashboard {
        uid: "evalpool-capacity",
        title: "evalpool: capacity",
        description: "How large the pool has to be: what is evicted too early, and what fills it.",
        rows: vec![("What is evicted too early", thrash), ("What fills it", room), ("Instances", instances)],
    }
}
