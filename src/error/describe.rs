//! What errors say to clients, where it takes more than a line.

use super::Bound;
use crate::units::Size;

pub(super) fn describe_missing(entry_point: Option<&str>, available: &[String]) -> String {
    let exists = match available {
        [] => {
            "it exports no function that could be an entry point (no parameters, and no result or one i32)".to_owned()
        }
        names => format!("it has {}", names.join(", ")),
    };
    match entry_point {
        Some(name) => format!("the plugin has no entry point {name:?}: {exists}"),
        None => format!("the plugin's entry point must be named: {exists}"),
    }
}

pub(super) fn describe_out_of_memory(limit: u64, to_start: Option<u64>) -> String {
    let limit = Size(limit);
    match to_start {
        Some(needed) => format!("the plugin needs {} to start; limits.memory is {limit}", Size(needed)),
        // Other hosts count only what an instance takes after it was made.
        None => format!(
            "the plugin ran out of memory; limits.memory is {limit}, for all memories of an instance, with that for input \
             and output, from their first page on"
        ),
    }
}

pub(super) fn describe_closed(name: &str, interrupted: bool) -> String {
    if interrupted {
        format!("the runtime of {name:?} was closed, which interrupted this call after its grace")
    } else {
        format!("the evaluator {name:?} is closed")
    }
}

pub(super) fn describe_quota(tenant: &str, bound: Bound, limit: u64) -> String {
    let (word, limit) = (bound.as_str(), bound.show(limit));
    format!("the tenant {tenant:?} has used up its bound: {word} = {limit}")
}
