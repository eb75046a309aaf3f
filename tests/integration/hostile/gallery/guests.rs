//! What plugins do once they are called: never end, take all, point nowhere.

use super::{
    Comes::{Ends, Nothing, Somehow},
    Hostile, module, run, wasi,
};

pub(super) fn all() -> Vec<Hostile> {
    [endless(), greedy(), amplified(), wild(), endings()].into_iter().flatten().collect()
}

/// `poll_oneoff` for one clock, a year from now.
const POLL: &str = "(param i32 i32 i32 i32) (result i32)";
const SUBSCRIBE: &str =
    "(i32.store (i32.const 1016) (i32.const 1)) (i64.store (i32.const 1024) (i64.const 31536000000000000))";
const SLEEP: &str = "(call $f (i32.const 1000) (i32.const 2000) (i32.const 1) (i32.const 3000))";

/// What does not end by itself.
fn endless() -> Vec<Hostile> {
    let late = Ends("exec_timeout");
    vec![
        run("an empty loop", "(loop br 0) i32.const 0", late),
        run("a loop that calls the host", "(loop (drop (call $alloc (i64.const 0))) (br 0)) i32.const 0", late),
        run(
            "a loop that allocates and frees",
            "(loop (call $free (call $alloc (i64.const 5))) (br 0)) i32.const 0",
            late,
        ),
        run(
            "a loop that fills all memory",
            "(drop (memory.grow (i32.const 63))) (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 4000000)) (br 0)) i32.const 0",
            late,
        ),
        run(
            "a loop that copies all memory",
            "(drop (memory.grow (i32.const 63))) (loop (memory.copy (i32.const 0) (i32.const 2000000) (i32.const 2000000)) (br 0)) i32.const 0",
            late,
        ),
        module(
            "a loop of tail calls",
            "(module (func $f (return_call $g)) (func $g (return_call $f)) (func (export \"run\") (call $f)))",
            late,
        ),
        module(
            "a loop through a table",
            "(module (table funcref (elem $f)) (type $t (func)) (func $f (return_call_indirect (type $t) (i32.const 0))) (func (export \"run\") (call $f)))",
            late,
        ),
        run("a log without end", "(loop (call $log_error (call $message)) (br 0)) i32.const 0", late),
        run(
            "variables set without end",
            "(loop (call $var_set (call $colour) (call $digits)) (br 0)) i32.const 0",
            late,
        ),
        run(
            "a reset without end",
            "(loop (drop (call $alloc (i64.const 60000))) (call $reset) (br 0)) i32.const 0",
            late,
        ),
        wasi(
            "a clock read without end",
            "clock_time_get",
            "(param i32 i64 i32) (result i32)",
            "(loop (drop (call $f (i32.const 0) (i64.const 1) (i32.const 64))) (br 0)) i32.const 0",
            late,
        ),
        wasi("a yield without end", "sched_yield", "(result i32)", "(loop (drop (call $f)) (br 0)) i32.const 0", late),
        wasi(
            "standard error without end",
            "fd_write",
            "(param i32 i32 i32 i32) (result i32)",
            "(i32.store (i32.const 1004) (i32.const 60000)) (loop (drop (call $f (i32.const 2) (i32.const 1000) (i32.const 1) (i32.const 2000))) (br 0)) i32.const 0",
            late,
        ),
        wasi(
            "randomness without end",
            "random_get",
            "(param i32 i32) (result i32)",
            "(loop (drop (call $f (i32.const 0) (i32.const 65536))) (br 0)) i32.const 0",
            late,
        ),
        wasi("a sleep of a year", "poll_oneoff", POLL, &format!("{SUBSCRIBE} (drop {SLEEP}) i32.const 0"), late),
        wasi(
            "a sleep of a year, again and again",
            "poll_oneoff",
            POLL,
            &format!("{SUBSCRIBE} (loop (br_if 0 (i32.eq {SLEEP} (i32.const 27)))) i32.const 0"),
            late,
        ),
    ]
}

/// What takes all that it can get.
fn greedy() -> Vec<Hostile> {
    let full = Ends("out_of_memory");
    vec![
        run("memory at once", "(drop (memory.grow (i32.const 60000))) i32.const 0", full),
        run("memory bit by bit", "(loop (drop (memory.grow (i32.const 1))) (br 0)) i32.const 0", full),
        run("the kernel's memory at once", "(drop (call $alloc (i64.const 3000000000))) i32.const 0", full),
        run("the kernel's memory bit by bit", "(loop (drop (call $alloc (i64.const 65536))) (br 0)) i32.const 0", full),
        run("the kernel's books", "(loop (drop (call $alloc (i64.const 200))) (br 0)) i32.const 0", full),
        run("more than there are offsets", "(drop (call $alloc (i64.const -1))) i32.const 0", full),
        run("four gigabytes and a little", "(drop (call $alloc (i64.const 0x100000005))) i32.const 0", full),
        run(
            "both memories",
            "(drop (memory.grow (i32.const 100))) (drop (call $alloc (i64.const 4000000))) i32.const 0",
            full,
        ),
        module(
            "a table that grows",
            "(module (table 1 funcref) (func (export \"run\") (result i32)
            (i32.ne (table.grow (ref.null func) (i32.const 100000000)) (i32.const -1))))",
            Nothing,
        ),
        module("the stack", "(module (func $f (call $f)) (func (export \"run\") (call $f)))", Ends("guest_trap")),
        module(
            "the stack, with a large frame",
            &format!(
                "(module (func $f (param i64) (local {}) (call $f (local.get 0))) (func (export \"run\") (call $f (i64.const 1))))",
                "i64 ".repeat(10_000)
            ),
            Ends("guest_trap"),
        ),
        run(
            "one variable of everything",
            "(call $var_set (call $colour) (call $alloc (i64.const 3000000))) i32.const 0",
            Ends("guest_error"),
        ),
        run(
            "output over its limit",
            "(call $output_set (call $alloc (i64.const 2000000)) (i64.const 2000000)) i32.const 0",
            Ends("output_too_large"),
        ),
        run(
            "an error of two megabytes",
            "(local $p i64) (local.set $p (call $alloc (i64.const 2000000))) (call $error_set (local.get $p)) i32.const 1",
            Ends("guest_error"),
        ),
        // What WASI makes of a buffer outside memory is its own affair, as long as it ends.
        wasi(
            "randomness over all memory and beyond",
            "random_get",
            "(param i32 i32) (result i32)",
            "(drop (call $f (i32.const 0) (i32.const -1))) i32.const 0",
            Somehow,
        ),
    ]
}

/// Calls that would have the host do or hold much for little.
fn amplified() -> Vec<Hostile> {
    vec![
        run(
            "a request of much that is little",
            "(drop (call $http (call $alloc (i64.const 100000)) (i64.const 0))) i32.const 0",
            Ends("guest_error"),
        ),
        run(
            "a variable with a name of a megabyte",
            "(drop (call $var_get (call $alloc (i64.const 1000000)))) i32.const 0",
            Ends("guest_error"),
        ),
        wasi(
            "randomness of four megabytes at once",
            "random_get",
            "(param i32 i32) (result i32)",
            "(if (i32.lt_u (memory.size) (i32.const 80)) (then (drop (memory.grow (i32.const 80)))))
             (drop (call $f (i32.const 0) (i32.const 4000000))) i32.const 0",
            Ends("guest_trap"),
        ),
        wasi(
            "a wait for a hundred thousand clocks",
            "poll_oneoff",
            "(param i32 i32 i32 i32) (result i32)",
            "(if (i32.lt_u (memory.size) (i32.const 100)) (then (drop (memory.grow (i32.const 110)))))
             (drop (call $f (i32.const 0) (i32.const 5000000) (i32.const 100000) (i32.const 100))) i32.const 0",
            Nothing,
        ),
        wasi(
            "sockets that are not there, again and again",
            "sock_shutdown",
            "(param i32 i32) (result i32)",
            "(local $i i32) (loop $l (drop (call $f (i32.const 3) (i32.const 1)))
                (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100)))) i32.const 0",
            Nothing,
        ),
    ]
}

/// Pointers to nowhere.
fn wild() -> Vec<Hostile> {
    let error = Ends("guest_error");
    vec![
        run("output of −1 bytes", "(call $output_set (call $alloc (i64.const 8)) (i64.const -1)) i32.const 0", error),
        run(
            "output that wraps around into memory",
            "(call $output_set (call $alloc (i64.const 8)) (i64.const -5)) i32.const 0",
            error,
        ),
        run("output at the end and beyond", "(call $output_set (i64.const 65536) (i64.const 1)) i32.const 0", error),
        run("output far outside", "(call $output_set (i64.const 4000000000) (i64.const 10)) i32.const 0", Nothing),
        run("an error far outside", "(call $error_set (i64.const 4000000000)) i32.const 0", Nothing),
        run(
            "an error in the middle of a block",
            "(call $error_set (i64.add (call $message) (i64.const 2))) i32.const 0",
            Nothing,
        ),
        run("an error that is no text", "(call $error_set (call $not_text)) i32.const 0", error),
        run("a config key nowhere", "(drop (call $config_get (i64.const -8))) i32.const 0", error),
        run("a variable's name nowhere", "(drop (call $var_get (i64.const 123456789))) i32.const 0", error),
        run("a variable's value nowhere", "(call $var_set (call $colour) (i64.const -1)) i32.const 0", error),
        run("a request nowhere", "(drop (call $http (i64.const -1) (i64.const -1))) i32.const 0", error),
        run(
            "a request that is none",
            "(drop (call $http (call $digits) (i64.const 0))) i32.const 0",
            Ends("guest_trap"),
        ),
        run(
            "frees of everything",
            "(local $i i64) (loop $l (call $free (local.get $i)) (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 10000)))) i32.const 0",
            Nothing,
        ),
        run(
            "stores everywhere",
            "(local $i i64) (loop $l (call $store64 (local.get $i) (i64.const -1)) (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 7))) (i64.const 70000)))) i32.const 0",
            Nothing,
        ),
        run(
            "stores far outside",
            "(call $store64 (i64.const -1) (i64.const 1)) (call $store8 (i64.const 4294967295) (i32.const 1)) i32.const 0",
            Nothing,
        ),
        run(
            "input that is set to nowhere, then read",
            "(call $input_set (i64.const 70) (i64.const -3)) (drop (call $input64 (i64.const 1000000000))) i32.const 0",
            Ends("guest_trap"),
        ),
        run("an indirect call of nothing", "(drop (i32.load (i32.const -4))) i32.const 0", Ends("guest_trap")),
    ]
}

/// Ways to end.
fn endings() -> Vec<Hostile> {
    let trap = Ends("guest_trap");
    vec![
        run("unreachable", "unreachable", trap),
        run("a division by zero", "(i32.div_u (i32.const 1) (i32.const 0))", trap),
        run("a number that is none", "(i32.trunc_f32_s (f32.const nan))", trap),
        run("a code", "i32.const 77", Ends("guest_error")),
        run("a code and an error", "(call $error_set (call $message)) i32.const -1", Ends("guest_error")),
        run("an error, then a trap", "(call $error_set (call $message)) unreachable", Ends("guest_error")),
        wasi("an exit", "proc_exit", "(param i32)", "(call $f (i32.const 1)) i32.const 0", Ends("guest_exit")),
        wasi("an exit with 0", "proc_exit", "(param i32)", "(call $f (i32.const 0)) i32.const 0", Nothing),
        wasi(
            "a write to standard output",
            "fd_write",
            "(param i32 i32 i32 i32) (result i32)",
            "(i32.store (i32.const 1000) (i32.const 0)) (i32.store (i32.const 1004) (i32.const 60000)) (drop (call $f (i32.const 1) (i32.const 1000) (i32.const 1) (i32.const 2000))) i32.const 0",
            Nothing,
        ),
        wasi(
            "a file of the host",
            "path_open",
            "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
            "(i32.eqz (call $f (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 2000)))",
            Nothing,
        ),
    ]
}
