//! The two engines: what each guarantees, and when to choose which.
//!
//! Both run the same plugins and give the same answers: a conformance suite holds them against each other, case by case
//! and with random plugins. The few differences are in [one list](super::direct#what-differs-from-extism). The engines
//! are chosen by `engine.kind` in the settings, `--engine` of the program, or
//! [`PoolBuilder::engine_kind`](crate::PoolBuilder::engine_kind), and built in by the cargo features `direct` and
//! `extism`. A build that has one of them has that one as its default; with both it is `direct`.
//!
//! | | `direct` | `extism` |
//! |---|---|---|
//! | what it is | Extism's guest ABI on wasmtime 48 (long-term support) | the crate of the Extism project, on the wasmtime that it brings (43, out of support) |
//! | plugins | everybody's | trusted ones only: `engine.trusted`, or [`Spec::trusted`](crate::Spec::trusted) |
//! | a guest runs | as a future, on a fiber; gives way to others at each tick of 1 ms | on a blocking thread |
//! | a deadline | ends it at its next tick | ends it within a few ms; extism may forget a call that is late as it begins |
//! | a call that is left | ends at its next tick | ends within a few ms, or 60 if it has just begun; extism may forget it |
//! | an initialiser that does not end | ends at `build_timeout` | is not interrupted |
//! | a guest that sleeps | blocks nobody, and ends at its deadline | blocks its thread until it wakes |
//! | memory | bounded by slots, for each instance in sum and for the process | counted afresh once a plugin is initialised: about twice the limit; tables are not bounded |
//! | HTTP | blocks nobody; private addresses must be named; ports can be | with the cargo feature `extism-http`; blocks the guest's thread |
//! | initialisers | in each instance, or [once](crate::config::Init) | in each instance |
//! | variables | as long as their instance, or [kept](crate::config::Vars) for the evaluator | as long as their instance |
//! | what a guest claims of its memory | is not believed | is believed: see [`SECURITY.md`](https://github.com/evalpool/evalpool/blob/main/SECURITY.md) |
//! | a fresh instance | tens of microseconds, on all cores | 0.1 to 0.3 ms, on one |
//! | an evicted plugin comes back | in a few milliseconds, from its cache of compiled code | in tens to hundreds, compiled again |
//! | host functions | ours; those that wait block nobody | ours, and `extism::Function` as it is |
//! | address space | reserved at start for all: `max_instances` × (5 × (`memory` + 32 MiB) + tables) | 17 GB for each instance |
//! | threads | none; one ticker for each pool | one for each guest that runs; one timer for the process |
//!
//! Choose **`direct`**. Choose **`extism`** for plugins that you trust, to compare with what other hosts of Extism do, or for
//! host functions that exist as `extism::Function` already.
//!
//! The figures come from `cargo bench --bench engines`, which measures both in one run.
//!
//! # Host functions that block
//!
//! On `extism` a host function runs on its guest's own thread. On `direct` it runs on the thread of the executor that
//! polls the guest, as any code in a future does: one that blocks holds up what else is on that thread, and neither a
//! deadline nor a drop is noticed before it returns. Declare whatever waits with
//! [`HostFunction::new_async`](super::HostFunction::new_async).
