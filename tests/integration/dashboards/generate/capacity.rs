//! How large it has to be.

use super::{
    Dashboard,
    panel::{bars, gauge, heatmap, lines, stat},
    promql::{increase, of, rate, rate_of_range, ratio, sum, sum_by},
};

const REUSE: &str = "evalpool_reuse_distance_total";

/// All lookups.
const EVERY: &str = r#"within="+Inf""#;

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
    let within = |matchers: &str| sum_by("within", &rate_of_range(REUSE, matchers));
    let all = sum(&rate_of_range(REUSE, EVERY));
    let of_time = |within: &str| ratio(&sum(&rate(REUSE, &format!("within=\"{within}\""))), &sum(&rate(REUSE, EVERY)));
    let enough = |part: f64| {
        let buckets = sum_by("within", &rate_of_range(REUSE, ""));
        let buckets = format!("label_replace({buckets}, \"le\", \"$1\", \"within\", \"(.*)\")");
        format!("ceil(histogram_quantile({part}, {}))", sum_by("le", &buckets))
    };
    let sizes = vec![
        bars("Hit ratio over capacity", "percentunit", "within", "Which share of the lookups in the time that is shown would have found a runtime, at each `pool.capacity`, if it evicted by last use alone. From the distances between lookups of the same evaluator: exact up to 1,024 evaluators, then from a sample. First calls of an evaluator hit at no capacity.", "Where the bars stop rising, more capacity brings nothing. If your capacity is left of the rise, the pool thrashes: take the first bar that is as high as you want, and see 'Memory of a runtime' for what it costs. With several instances of the server, it is the capacity of each.")
            .width(24)
            .max(1.0)
            .query(format!("{} / scalar(clamp_min({all}, 1e-9))", within(r#"within!="+Inf""#)), "{{within}}"),
        stat("Capacity for 90, 95 and 99 %", "short", "The capacity that would have served this share of the lookups without a build, in the time that is shown.", "Far above `pool.capacity`, the line below: raise it. 65,536 means more than that, or that so many lookups were first ones.")
            .width(8)
            .query(enough(0.9), "90 %")
            .query(enough(0.95), "95 %")
            .query(enough(0.99), "99 %")
            .query(format!("max({})", of("evalpool_runtimes_capacity", "")), "capacity"),
        lines("Hit ratio at some capacities", "percentunit", "The same over time, for some capacities, and the hit ratio that the pool has.", "The pool's own is far below that of its capacity: `pool.memory` or `pool.idle_ttl` evict before the capacity does, or deploys replace what is there.")
            .width(16)
            .max(1.0)
            .query(of_time("16"), "16")
            .query(of_time("64"), "64")
            .query(of_time("256"), "256")
            .query(of_time("1024"), "1,024")
            .query(of_time("4096"), "4,096")
            .query(of_time("16384"), "16,384")
            .query(ratio(&sum(&rate("evalpool_lookups_total", r#"result=~"hit|coalesced""#)), &sum(&rate("evalpool_lookups_total", ""))), "as it is"),
    ];
    Dashboard {
        uid: "evalpool-capacity",
        title: "evalpool: capacity",
        description: "How large the pool has to be: what is evicted too early, the hit ratio of every capacity, and what fills it.",
        rows: vec![
            ("What is evicted too early", thrash),
            ("How large is large enough", sizes),
            ("What fills it", room),
            ("Instances", instances),
        ],
    }
}
