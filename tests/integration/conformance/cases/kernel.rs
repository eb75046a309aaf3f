//! What guests ask of the kernel: memory, input, output, errors.

use super::super::{
    Case,
    Expected::{Error, Output, Same},
    case,
    cases::KEPT,
    env, with_functions,
};

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn cases() -> Vec<Case> {
    let large: Vec<u8> = (0..16_u32 << 20).map(|at| (at % 251) as u8).collect();
    vec![
        case("no output", env("i32.const 0"), "x", Output(b"")),
        case("echo", env("(call $echo) i32.const 0"), "abc", Output(b"abc")),
        case("echo of nothing", env("(call $echo) i32.const 0"), "", Output(b"")),
        case(
            "echo of bytes that are no text",
            env("(call $echo) i32.const 0"),
            &b"\xff\x00\xfe0123456789"[..],
            Output(b"\xff\x00\xfe0123456789"),
        ),
        case("echo of 16 MiB", env("(call $echo) i32.const 0"), large, Same),
        case(
            "input length",
            env("(call $out (call $input_length)) i32.const 0"),
            "abc",
            Output(&[3, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "input offset",
            env("(call $out (call $input_offset)) i32.const 0"),
            "abc",
            Output(&[77, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case("no input has no offset", env("(call $out (call $input_offset)) i32.const 0"), "", Output(&[0; 8])),
        case("input through its offset", env("(call $block (call $input_offset)) i32.const 0"), "abc", Output(b"abc")),
        case(
            "input beyond its end",
            env("(call $out (i64.extend_i32_u (call $input8 (i64.const 3)))) i32.const 0"),
            "abc",
            Output(&[0; 8]),
        ),
        case(
            "eight bytes across the input's end",
            env("(call $out (call $input64 (i64.const 0))) i32.const 0"),
            "abc",
            Output(&[0; 8]),
        ),
        case(
            "input at a wild offset",
            env("(call $out (call $input64 (i64.const -9))) i32.const 0"),
            "abc",
            Output(&[0; 8]),
        ),
        case(
            "input set by the guest",
            env("(call $input_set (call $digits) (i64.const 4)) (call $out (call $input_length)) i32.const 0"),
            "",
            Output(&[4, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "input set to nowhere",
            env("(call $input_set (i64.const 1) (i64.const 4)) (call $out (call $input_length)) i32.const 0"),
            "ab",
            Output(&[2, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "input freed",
            env("(call $free (call $input_offset)) (call $out (call $input_length)) i32.const 0"),
            "ab",
            Output(&[0; 8]),
        ),
        case("alloc of nothing", env("(call $out (call $alloc (i64.const 0))) i32.const 0"), "", Output(&[0; 8])),
        case(
            "alloc gives length",
            env("(call $out (call $length (call $alloc (i64.const 300)))) i32.const 0"),
            "",
            Output(&[44, 1, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "length without a walk",
            env("(call $out (call $length_unsafe (call $alloc (i64.const 300)))) i32.const 0"),
            "",
            Output(&[44, 1, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "length of what is not a block",
            env("(call $out (call $length (i64.add (call $alloc (i64.const 30)) (i64.const 1)))) i32.const 0"),
            "",
            Output(&[0; 8]),
        ),
        case("length of nothing", env("(call $out (call $length (i64.const 0))) i32.const 0"), "", Output(&[0; 8])),
        case(
            "length at a wild offset",
            env("(call $out (call $length (i64.const -1))) i32.const 0"),
            "",
            Output(&[0; 8]),
        ),
        case(
            "length of a freed block",
            with_functions(
                "(global $p (mut i64) (i64.const 0))",
                "(global.set $p (call $alloc (i64.const 9))) (call $free (global.get $p)) (call $out (call $length (global.get $p))) i32.const 0",
            ),
            "",
            Output(&[0; 8]),
        ),
        case(
            "free of what is not a block",
            env("(call $free (i64.const 5)) (call $free (i64.const -5)) (call $free (i64.const 0)) i32.const 0"),
            "",
            Output(b""),
        ),
        case(
            "alloc beyond the memory limit",
            env("(drop (call $alloc (i64.const 100000000))) i32.const 0"),
            "",
            Error("out_of_memory", "out of memory"),
        ),
        case(
            "allocs without end",
            env("(loop $again (drop (call $alloc (i64.const 1000000))) (br $again)) i32.const 0"),
            "",
            Error("out_of_memory", "out of memory"),
        ),
        case(
            "load below the memory",
            env(
                "(call $out (i64.add (call $load64 (i64.const 3)) (i64.extend_i32_u (call $load8 (i64.const 3))))) i32.const 0",
            ),
            "",
            Output(&[0; 8]),
        ),
        case(
            "load beyond the memory",
            env(
                "(call $out (i64.add (call $load64 (i64.const 99999999)) (i64.extend_i32_u (call $load8 (i64.const -1))))) i32.const 0",
            ),
            "",
            Output(&[0; 8]),
        ),
        case(
            "store beyond the memory",
            env(
                "(call $store64 (i64.const 99999999) (i64.const 7)) (call $store8 (i64.const -1) (i32.const 7)) i32.const 0",
            ),
            "",
            Output(b""),
        ),
        case(
            "load at the memory's very end",
            env("(call $out (i64.extend_i32_u (call $load8 (i64.const 65536)))) i32.const 0"),
            "",
            Output(&[0; 8]),
        ),
        case(
            "memory bytes",
            env("(call $out (call $memory_bytes)) i32.const 0"),
            "",
            Output(&[192, 255, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "output that is read back",
            env(
                "(call $output_set (call $digits) (i64.const 5)) (call $out (i64.add (call $output_length) (call $output_offset))) i32.const 0",
            ),
            "",
            Same,
        ),
        case(
            "a part of a block as output",
            env("(call $output_set (i64.add (call $digits) (i64.const 2)) (i64.const 3)) i32.const 0"),
            "",
            Output(b"234"),
        ),
        case(
            "output at nothing keeps the last",
            env(
                "(call $output_set (call $digits) (i64.const 2)) (call $output_set (i64.const 0) (i64.const 0)) i32.const 0",
            ),
            "",
            Output(b"01"),
        ),
        case(
            "output beyond the memory keeps the last",
            env(
                "(call $output_set (call $digits) (i64.const 2)) (call $output_set (call $digits) (i64.const 9999999)) i32.const 0",
            ),
            "",
            Output(b"01"),
        ),
        case(
            "reset forgets the input",
            env("(call $reset) (call $out (call $input_length)) i32.const 0"),
            "ab",
            Output(&[0; 8]),
        ),
        case(
            "reset frees and clears",
            env("(drop (call $digits)) (call $reset) (call $block (call $alloc (i64.const 3))) i32.const 0"),
            "",
            Output(&[0; 3]),
        ),
        case(
            "output in a block that is freed",
            with_functions(
                KEPT,
                "(call $block (call $keep (call $digits))) (call $free (global.get $kept)) i32.const 0",
            ),
            "",
            Output(b"0123456789"),
        ),
        case(
            "output in a block that is freed and used again",
            with_functions(
                KEPT,
                "(call $block (call $keep (call $digits))) (call $free (global.get $kept)) (drop (call $message)) i32.const 0",
            ),
            "",
            Same,
        ),
        case(
            "input set to a block that is freed",
            with_functions(
                KEPT,
                "(call $input_set (call $keep (call $digits)) (i64.const 10)) (call $free (global.get $kept)) (call $out (call $input_length)) i32.const 0",
            ),
            "",
            Output(&[0; 8]),
        ),
        case(
            "an error in a block that is freed",
            with_functions(
                KEPT,
                "(call $error_set (call $keep (call $message))) (call $free (global.get $kept)) i32.const 0",
            ),
            "",
            Output(b""),
        ),
        case(
            "an error in a block that is freed and used again",
            with_functions(
                KEPT,
                "(call $error_set (call $keep (call $message))) (call $free (global.get $kept)) (drop (call $shape)) i32.const 0",
            ),
            "",
            Same,
        ),
        case(
            "input as output and as the error",
            env(
                "(call $output_set (call $input_offset) (call $input_length)) (call $error_set (call $input_offset)) i32.const 0",
            ),
            "abc",
            Error("guest_error", "abc"),
        ),
        case("error is none at first", env("(call $out (call $error_get)) i32.const 0"), "", Output(&[0; 8])),
        case(
            "an error with code 0",
            env("(call $error_set (call $message)) i32.const 0"),
            "",
            Error("guest_error", "message"),
        ),
        case(
            "an error with a code",
            env("(call $error_set (call $message)) i32.const 3"),
            "",
            Error("guest_error", "message"),
        ),
        case(
            "an error taken back",
            env("(call $error_set (call $message)) (call $error_set (i64.const 0)) i32.const 0"),
            "",
            Output(b""),
        ),
        case(
            "an error that is no text",
            env("(call $error_set (call $not_text)) i32.const 1"),
            "",
            Error("guest_error", "invalid utf-8"),
        ),
        case(
            "an error that is no block",
            env("(call $error_set (i64.const 99)) i32.const 4"),
            "",
            Error("guest_error", "it returned 4"),
        ),
        case(
            "an error, then a trap",
            env("(call $error_set (call $message)) unreachable"),
            "",
            Error("guest_error", "message"),
        ),
        case("a code", env("i32.const 7"), "", Error("guest_error", "it returned 7")),
        case("a negative code", env("i32.const -7"), "", Error("guest_error", "it returned -7")),
        case(
            "output of a call that failed is not given",
            env("(call $echo) i32.const 1"),
            "x",
            Error("guest_error", "it returned 1"),
        ),
    ]
}
