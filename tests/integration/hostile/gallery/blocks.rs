//! Stores around the blocks that a plugin was given, where an allocator might keep its notes. Whoever says so with 0 has
//! found that nothing came of them.

use super::{
    Comes::{Ends, Nothing},
    Hostile, parts, run,
};

/// Stores of all ones that touch each byte of a header, and bytes of the block beside it.
const FORGE: &str = "(func $forge (param $p i64) (local $i i64)
        (loop $l (call $store8 (i64.sub (local.get $p) (i64.add (local.get $i) (i64.const 1))) (i32.const 255))
            (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 12))))
        (local.set $i (i64.const 0))
        (loop $l (call $store64 (i64.sub (local.get $p) (i64.add (local.get $i) (i64.const 1))) (i64.const -1))
            (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 19)))))";

fn forged(trick: &'static str, body: &str) -> Hostile {
    parts(trick, FORGE, body, Nothing)
}

pub(super) fn all() -> Vec<Hostile> {
    vec![
        forged(
            "a forged header of its own block",
            "(local $p i64) (local.set $p (call $alloc (i64.const 64))) (call $forge (local.get $p))
             (i64.ne (call $length (local.get $p)) (i64.const 64))",
        ),
        forged(
            "forged headers of many blocks, far into memory",
            "(local $p i64) (local $i i32) (local $wrong i32)
             (loop $l (local.set $p (call $alloc (i64.const 40001))) (call $forge (local.get $p))
                (if (i64.ne (call $length (local.get $p)) (i64.const 40001)) (then (local.set $wrong (i32.const 1))))
                (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 70))))
             (local.get $wrong)",
        ),
        forged(
            "a forged header of a variable",
            "(local $p i64) (call $var_set (call $colour) (call $digits)) (local.set $p (call $var_get (call $colour)))
             (call $forge (local.get $p)) (i64.ne (call $length (local.get $p)) (i64.const 10))",
        ),
        run(
            "an error that is forged once it is set",
            "(local $p i64) (local.set $p (call $message)) (call $error_set (local.get $p))
             (call $store64 (i64.sub (local.get $p) (i64.const 8)) (i64.const 0x7fffffff7fffffff)) i32.const 1",
            Ends("guest_error"),
        ),
        forged(
            "stores at the very end of the last block",
            "(local $p i64) (local.set $p (call $alloc (i64.const 10)))
             (call $store64 (i64.add (local.get $p) (i64.const 3)) (i64.const -1))
             (call $store64 (i64.add (local.get $p) (i64.const 2)) (i64.const 0x0807060504030201))
             (call $store8 (i64.add (local.get $p) (i64.const 10)) (i32.const 1))
             (i32.or (i32.ne (call $load8 (i64.add (local.get $p) (i64.const 9))) (i32.const 8))
                (i64.ne (call $length (i64.add (local.get $p) (i64.const 22))) (i64.const 0)))",
        ),
        // The reset ends late, by a deadline, in the middle: the block is forgotten, and what is in it is not.
        run(
            "a header in a block that is cleared until its deadline",
            "(local $p i64) (local $f i64)
             (loop $again
                (local.set $p (call $alloc (i64.const 7000000)))
                (local.set $f (i64.add (local.get $p) (i64.const 6990000)))
                (local.set $f (i64.sub (local.get $f) (i64.rem_u (i64.sub (local.get $f) (i64.const 65)) (i64.const 12))))
                (call $store8 (local.get $f) (i32.const 1))
                (call $store64 (i64.add (local.get $f) (i64.const 4)) (i64.const 0xfffffff0fffffff0))
                (call $error_set (i64.add (local.get $f) (i64.const 12)))
                (call $reset) (br $again)) i32.const 0",
            Ends("exec_timeout"),
        ),
        parts(
            "blocks where an earlier call had headers",
            "(global $calls (mut i32) (i32.const 0))",
            "(local $p i64) (local $i i64) (local $wrong i32)
             (if (i32.eqz (global.get $calls))
                (then (loop $l (drop (call $alloc (i64.const 20)))
                    (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 40)))))
                (else (local.set $p (call $alloc (i64.const 1000)))
                    (loop $l (call $store8 (i64.add (local.get $p) (local.get $i)) (i32.const 77))
                        (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 1000))))
                    (loop $l (local.set $i (i64.sub (local.get $i) (i64.const 1)))
                        (if (i32.ne (call $load8 (i64.add (local.get $p) (local.get $i))) (i32.const 77))
                            (then (local.set $wrong (i32.const 1))))
                        (br_if $l (i64.ne (local.get $i) (i64.const 0))))))
             (global.set $calls (i32.add (global.get $calls) (i32.const 1))) (local.get $wrong)",
            Nothing,
        ),
    ]
}
