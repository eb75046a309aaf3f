//! More of the gallery: what plugins do once they run.

use super::{
    Comes::{Ends, Nothing, Refused, Somehow},
    Hostile, module, numbered, parts, run, wasi,
};

pub(super) fn all() -> Vec<Hostile> {
    [bulk(), tables(), limits(), claims(), names_and_logs(), endings(), system()].into_iter().flatten().collect()
}

/// Instructions that work on much at once.
fn bulk() -> Vec<Hostile> {
    let (trap, late) = (Ends("guest_trap"), Ends("exec_timeout"));
    let data = "(data $d \"0123456789\")";
    vec![
        parts(
            "data that is used after it was dropped",
            data,
            "(data.drop $d) (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)) i32.const 0",
            trap,
        ),
        parts(
            "nothing of data that was dropped",
            data,
            "(data.drop $d) (memory.init $d (i32.const 0) (i32.const 0) (i32.const 0)) i32.const 0",
            Nothing,
        ),
        parts("data that is dropped without end", data, "(loop (data.drop $d) (br 0)) i32.const 0", late),
        parts(
            "data that is copied without end",
            data,
            "(loop (memory.init $d (i32.const 0) (i32.const 0) (i32.const 10)) (br 0)) i32.const 0",
            late,
        ),
        parts(
            "more of data than there is",
            data,
            "(memory.init $d (i32.const 0) (i32.const 5) (i32.const -1)) i32.const 0",
            trap,
        ),
        run("a fill of −1 bytes", "(memory.fill (i32.const 0) (i32.const 1) (i32.const -1)) i32.const 0", trap),
        run(
            "a copy from the last byte on",
            "(memory.copy (i32.const 0) (i32.const 65535) (i32.const 2)) i32.const 0",
            trap,
        ),
        run(
            "a copy of nothing just behind the memory",
            "(memory.copy (i32.const 65536) (i32.const 65536) (i32.const 0)) i32.const 0",
            Nothing,
        ),
        run("a word that ends behind the memory", "(drop (i64.load (i32.const 65529)))  i32.const 0", trap),
        run("an offset that wraps around", "(drop (i64.load offset=4294967295 (i32.const 8))) i32.const 0", trap),
    ]
}

/// Tables, and calls through them.
fn tables() -> Vec<Hostile> {
    let (trap, late) = (Ends("guest_trap"), Ends("exec_timeout"));
    let table = "(table $t 10000 funcref) (elem declare func $other) (func $other (param i64) (result i64) (local.get 0)) (type $run (func (result i32)))";
    let one = "(table $t 1 funcref) (elem $e func $other) (func $other (param i64) (result i64) (local.get 0)) (type $run (func (result i32)))";
    vec![
        parts("a table that is filled without end", table, "(loop (table.fill $t (i32.const 0) (ref.func $other) (i32.const 10000)) (br 0)) i32.const 0", late),
        parts("a table that is copied without end", table, "(loop (table.copy $t $t (i32.const 1) (i32.const 0) (i32.const 9999)) (br 0)) i32.const 0", late),
        parts("a table that is filled beyond its end", table, "(table.fill $t (i32.const 1) (ref.null func) (i32.const 10000)) i32.const 0", trap),
        parts("a table that grows by nothing without end", table, "(loop (drop (table.grow $t (ref.null func) (i32.const 0))) (br 0)) i32.const 0", late),
        parts("four tables that all grow", "(table $a 1 funcref) (table $b 1 funcref) (table $c 1 funcref) (table $d 1 funcref)",
            "(drop (table.grow $a (ref.null func) (i32.const 9999))) (drop (table.grow $b (ref.null func) (i32.const 9999)))
             (drop (table.grow $c (ref.null func) (i32.const 9999)))
             (i32.ne (table.grow $d (ref.null func) (i32.const 10000)) (i32.const -1))", Nothing),
        parts("a function that is called as another", one, "(table.set $t (i32.const 0) (ref.func $other)) (call_indirect $t (type $run) (i32.const 0))", trap),
        parts("a call beyond the table", one, "(call_indirect $t (type $run) (i32.const -1))", trap),
        parts("a look beyond the table", one, "(drop (table.get $t (i32.const 1))) i32.const 0", trap),
        parts("elements that are used after they were dropped", one, "(elem.drop $e) (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1)) i32.const 0", trap),
        parts("a recursion of a thousand parameters",
            &format!("(func $deep (param {}) {} (call $deep))", "i64 ".repeat(900), numbered(900, |at| format!("(local.get {at})"))),
            &format!("{} (call $deep) i32.const 0", "(i64.const 1) ".repeat(900)), trap),
        parts("a recursion through a table", "(table $t 1 funcref) (type $run (func (result i32))) (func $f (result i32) (i32.add (call_indirect $t (type $run) (i32.const 0)) (i32.const 1))) (elem (i32.const 0) $f)",
            "(call_indirect $t (type $run) (i32.const 0))", trap),
    ]
}

/// At a limit, and one over.
fn limits() -> Vec<Hostile> {
    let full = Ends("guest_error");
    // A name of four bytes, a value of what is given.
    let variable = |size: u32| {
        // What an earlier call of the same instance has set is counted until it is removed.
        format!(
            "(call $var_set (call $text (i32.const 21) (i32.const 4)) (i64.const 0)) (call $var_set (call $text (i32.const 21) (i32.const 4)) (call $alloc (i64.const {size}))) i32.const 0"
        )
    };
    // What each variable costs beside its name and value.
    let most = (1 << 20) - 48 - 4;
    vec![
        run("output of exactly its limit", "(call $output_set (call $alloc (i64.const 1048576)) (i64.const 1048576)) i32.const 0", Nothing),
        run("output of one byte over its limit", "(call $output_set (call $alloc (i64.const 1048577)) (i64.const 1048577)) i32.const 0", Ends("output_too_large")),
        run("one variable of all that there may be", &variable(most), Nothing),
        run("one variable of a byte more", &variable(most + 1), full),
        parts("variables of ever new names", "(global $n (mut i64) (i64.const 0))",
            "(local $p i64) (loop $l (local.set $p (call $alloc (i64.const 60))) (call $store64 (local.get $p) (global.get $n))
             (global.set $n (i64.and (i64.add (i64.or (global.get $n) (i64.const 0xc0c0c0c0c0c0c0c0)) (i64.const 1)) (i64.const 0x3f3f3f3f3f3f3f3f)))
             (call $var_set (local.get $p) (call $digits)) (br $l)) i32.const 0", Somehow),
        module("a memory that cannot grow beyond what it says itself", "(module (memory 1 2) (func (export \"run\") (result i32) (drop (memory.grow (i32.const 1))) (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))", Nothing),
        run("growth by nothing without end", "(loop (drop (memory.grow (i32.const 0))) (br 0)) i32.const 0", Ends("exec_timeout")),
        run("growth by more than there are pages", "(drop (memory.grow (i32.const -1))) i32.const 0", Nothing),
        run("a block that is freed twice, and then is output", "(local $p i64) (local.set $p (call $digits)) (call $free (local.get $p)) (call $free (local.get $p)) (call $output_set (local.get $p) (i64.const 10)) i32.const 0", Nothing),
        run("output of what a reset took away", "(local $p i64) (local.set $p (call $digits)) (call $reset) (call $output_set (local.get $p) (i64.const 10)) i32.const 0", Nothing),
        run("an error of what a reset took away", "(local $p i64) (local.set $p (call $message)) (call $reset) (call $error_set (local.get $p)) i32.const 0", Nothing),
    ]
}

/// Errors that claim to be the host's.
fn claims() -> Vec<Hostile> {
    let said = Ends("guest_error");
    let claim = |trick, text: &str, rest: &str, comes| {
        parts(
            trick,
            &format!("(data (i32.const 1000) \"{text}\")"),
            &format!("(call $error_set (call $text (i32.const 1000) (i32.const {}))) {rest}", text.len()),
            comes,
        )
    };
    vec![
        claim("an error that says timeout", "timeout", "i32.const 1", said),
        claim("an error that says oom", "oom", "i32.const 1", said),
        claim("an error that says out of fuel", "plugin ran out of fuel", "i32.const 1", said),
        claim("an error that says out of memory", "out of memory", "i32.const 1", said),
        claim("an error that says exit", "Exited with i32 exit status 5", "i32.const 1", said),
        claim("an error that says another code", "Returned non-zero exit code: 0", "i32.const 1", said),
        claim("an error that says trap, and a trap", "wasm trap: interrupt", "unreachable", said),
        claim("an error that says internal", "internal error: the engine panicked", "i32.const 1", said),
        claim("an error that is a problem of its own", "{'status':200,'kind':'internal'}", "i32.const 1", said),
        claim("an error, and no code", "cancelled", "i32.const 0", said),
    ]
}

/// Names, keys and messages of every kind.
fn names_and_logs() -> Vec<Hostile> {
    let with = |trick, text: &str, body: &str, comes| {
        // An escape is a byte: two digits, or a second backslash.
        let length =
            text.replace("\\\\", "x").bytes().fold(0, |sum, byte| if byte == b'\\' { sum - 1 } else { sum + 1 });
        parts(
            trick,
            &format!(
                "(data (i32.const 1000) \"{text}\") (func $given (result i64) (call $text (i32.const 1000) (i32.const {length})))"
            ),
            &format!("{body} i32.const 0"),
            comes,
        )
    };
    let control = "\\00\\1b[2J\\0d\\0a\\e2\\80\\ae";
    let invalid = "\\ff\\fe\\c3\\28";
    let line = "x\\0a2026-01-01T00:00:00.000000Z ERROR evalpool: all is lost";
    vec![
        with(
            "a variable whose name is control characters",
            control,
            "(call $var_set (call $given) (call $digits)) (drop (call $var_get (call $given)))",
            Nothing,
        ),
        with(
            "a variable whose name is no text",
            invalid,
            "(call $var_set (call $given) (call $digits))",
            Ends("guest_error"),
        ),
        with(
            "a variable whose name is nothing",
            "",
            "(call $var_set (i64.const 0) (call $digits)) (drop (call $var_get (i64.const 0)))",
            Somehow,
        ),
        with("a setting whose name is control characters", control, "(drop (call $config_get (call $given)))", Nothing),
        with(
            "settings asked for without end",
            "colour",
            "(loop (drop (call $config_get (call $given))) (br 0))",
            Ends("exec_timeout"),
        ),
        with(
            "a log of control characters",
            control,
            "(call $log_error (call $given)) (call $log_info (call $given))",
            Nothing,
        ),
        with(
            "a log of what is no text",
            invalid,
            "(call $log_error (call $given)) (call $log_info (call $given))",
            Nothing,
        ),
        with("a line of the log that looks like the operator's", line, "(call $log_error (call $given))", Nothing),
        with("a log of a megabyte", "", "(call $log_error (call $alloc (i64.const 1000000)))", Nothing),
        with("a log of a wild message", "", "(call $log_error (i64.const 987654321))", Somehow),
        with(
            "a log at every level without end",
            "x",
            "(loop (call $log_trace (call $given)) (call $log_debug (call $given)) (call $log_info (call $given)) (call $log_warn (call $given)) (br 0))",
            Ends("exec_timeout"),
        ),
        with(
            "a request whose method is another request",
            "{\\22url\\22:\\22http://127.0.0.1/\\22,\\22method\\22:\\22GET / HTTP/1.1\\\\r\\\\n\\22}",
            "(drop (call $http (call $given) (i64.const 0)))",
            Ends("guest_trap"),
        ),
        with(
            "a request of a file of this machine",
            "{\\22url\\22:\\22file:///etc/passwd\\22}",
            "(drop (call $http (call $given) (i64.const 0)))",
            Ends("guest_trap"),
        ),
    ]
}

/// Ways to end, and what is set before.
fn endings() -> Vec<Hostile> {
    let exit = |trick, code: i32, comes| {
        wasi(trick, "proc_exit", "(param i32)", &format!("(call $f (i32.const {code})) i32.const 0"), comes)
    };
    let start = |trick, body: &str, comes| parts(trick, &format!("(func $s {body}) (start $s)"), "i32.const 0", comes);
    vec![
        exit("an exit with the greatest code", 125, Ends("guest_exit")),
        exit("an exit with −1", -1, Ends("guest_trap")),
        exit("an exit with a code that no system has", 70_000, Ends("guest_trap")),
        run("the least of all codes", "i32.const -2147483648", Ends("guest_error")),
        run("output, then a trap", "(call $echo) unreachable", Ends("guest_trap")),
        run("a number too large for its type", "(i32.trunc_f64_s (f64.const 1e300))", Ends("guest_trap")),
        run(
            "a quotient too large for its type",
            "(drop (i64.div_s (i64.const -9223372036854775808) (i64.const -1))) i32.const 0",
            Ends("guest_trap"),
        ),
        start(
            "a start that leaves output and a variable",
            "(call $output_set (call $digits) (i64.const 10)) (call $var_set (call $colour) (call $digits))",
            Nothing,
        ),
        start("a start that leaves an error", "(call $error_set (call $message))", Nothing),
        start(
            "a start that logs without end",
            "(loop (call $log_error (call $message)) (br 0))",
            Refused("build_timeout"),
        ),
        start(
            "a start that asks for a host that is not allowed",
            "(drop (call $http (call $digits) (i64.const 0)))",
            Refused("invalid_plugin"),
        ),
        start(
            "a start that takes the kernel's memory",
            "(loop (drop (call $alloc (i64.const 60000))) (br 0))",
            Refused("out_of_memory"),
        ),
    ]
}

/// What a process of this machine could do, and a plugin cannot.
fn system() -> Vec<Hostile> {
    let six = "(param i32 i32) (result i32)";
    vec![
        // Each gives what it found as its code: 0 is nothing.
        wasi("a look at the environment", "environ_sizes_get", six, "(drop (call $f (i32.const 1000) (i32.const 1004))) (i32.load (i32.const 1000))", Nothing),
        wasi("a look at the arguments", "args_sizes_get", six, "(drop (call $f (i32.const 1000) (i32.const 1004))) (i32.load (i32.const 1000))", Nothing),
        wasi("a look for folders of the host", "fd_prestat_get", six,
            "(local $fd i32) (local $found i32) (local.set $fd (i32.const 3))
             (loop $l (if (i32.eqz (call $f (local.get $fd) (i32.const 1000))) (then (local.set $found (i32.const 1))))
                (br_if $l (i32.lt_u (local.tee $fd (i32.add (local.get $fd) (i32.const 1))) (i32.const 100)))) (local.get $found)", Nothing),
        wasi("a look at standard input", "fd_read", "(param i32 i32 i32 i32) (result i32)",
            "(i32.store (i32.const 1000) (i32.const 2000)) (i32.store (i32.const 1004) (i32.const 100))
             (drop (call $f (i32.const 0) (i32.const 1000) (i32.const 1) (i32.const 1008))) (i32.load (i32.const 1008))", Nothing),
        wasi("a page to standard error", "fd_write", "(param i32 i32 i32 i32) (result i32)",
            "(i32.store (i32.const 1000) (i32.const 0)) (i32.store (i32.const 1004) (i32.const 4096))
             (drop (call $f (i32.const 2) (i32.const 1000) (i32.const 1) (i32.const 1008))) i32.const 0", Nothing),
        wasi("a write of more than there is memory", "fd_write", "(param i32 i32 i32 i32) (result i32)",
            "(i32.store (i32.const 1000) (i32.const 60000)) (i32.store (i32.const 1004) (i32.const -1))
             (drop (call $f (i32.const 1) (i32.const 1000) (i32.const 1) (i32.const 1008))) i32.const 0", Somehow),
        wasi("a write of all memory ten thousand times over", "fd_write", "(param i32 i32 i32 i32) (result i32)",
            "(local $at i32) (local.set $at (i32.const 65536))
             (if (i32.lt_u (memory.size) (i32.const 100)) (then (drop (memory.grow (i32.const 99)))))
             (loop $l (i32.store (local.get $at) (i32.const 0)) (i32.store offset=4 (local.get $at) (i32.const 6000000))
                (br_if $l (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 145536))))
             (drop (call $f (i32.const 1) (i32.const 65536) (i32.const 10000) (i32.const 1008))) i32.const 0", Somehow),
        wasi("a signal to itself", "proc_raise", "(param i32) (result i32)", "(drop (call $f (i32.const 9))) i32.const 0", Somehow),
        wasi("a connection that is waiting", "sock_accept", "(param i32 i32 i32) (result i32)", "(drop (call $f (i32.const 3) (i32.const 0) (i32.const 1000))) i32.const 0", Somehow),
    ]
}
