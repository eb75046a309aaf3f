//! The two engines: what each guarantees, and when to choose which.
//!
//! Both run the same plugins and give the same answers: a conformance suite holds them against each other, case by case
//! and with random plugins, and the few differences that are meant are listed with [`direct`](super::direct). They are
//! chosen by `engine.kind` in the settings, `--engine` of the program, or
//! [`PoolBuilder::engine_kind`](crate::PoolBuilder::engine_kind), and built in by the cargo features `extism` and
//! `direct`.
//!
//! | | `extism` | `direct` |
//! |---|---|---|
//! | what it is | the crate of the Extism project, on the wasmtime that it brings (43, out of support) | Extism's guest ABI on wasmtime 48 (long-term support) |
//! | a guest runs | on a blocking thread | as a future, on a fiber; gives way to others at each tick of 1 ms |
//! | a deadline | ends it within a few ms, by an interrupt of an engine that each instance has for itself | ends it at its next tick |
//! | an initialiser that does not end | is interrupted at `build_timeout`, by way of a second instance | ends at `build_timeout` |
//! | a guest that sleeps | is woken each millisecond with `EINTR`, unless trusted | sleeps, and blocks nobody |
//! | memory | each memory and table bounded by slots of its instance; all memories together may reach about twice the limit | bounded by slots, for each instance in sum and for the process |
//! | HTTP | the same client and bounds; blocks the guest's thread | blocks nobody |
//! | what a guest claims of its memory | is kept from what extism believes, by a module between the two | is not believed |
//! | a fresh instance | 0.1 to 0.3 ms, and does not scale beyond a core | tens of microseconds, and does |
//! | an evicted plugin comes back | in tens to hundreds of milliseconds | in a few, from its cache of compiled code |
//! | host functions | ours, and `extism::Function` as it is | ours; those that wait block nobody |
//! | address space | for each instance in use at once: 5 × (`memory` + 32 MiB) + tables; twice that with initialisers | reserved at start for all: `max_instances` × (4 × (`memory` + 32 MiB) + tables) |
//! | threads | one for each guest that runs | none; one ticker for each pool |
//!
//! Choose **`direct`** for plugins of people whom you do not know, for many plugins, and for short ones. Choose
//! **`extism`** to be as close as can be to other hosts of Extism, or for host functions that exist as
//! `extism::Function` already. It is the default for now, as the reference that `direct` is held against.
//!
//! The figures come from `cargo bench --bench engines`, which measures both in one run.
//!
//! # Host functions that block
//!
//! On `extism` a host function runs on its guest's own thread. On `direct` it runs on the thread of the executor that
//! polls the guest, as any code in a future does: one that blocks holds up what else is on that thread, and neither a
//! deadline nor a drop is noticed before it returns. Declare whatever waits with
//! [`HostFunction::new_async`](super::HostFunction::new_async).
