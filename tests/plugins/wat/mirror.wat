;; Takes requests (`input = "request"`) and answers each with what it was given: its response's body is its input.
(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "input_length" (func $input_length (result i64)))
    (import "extism:host/env" "input_load_u8" (func $input_load (param i64) (result i32)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))

    ;; Memory of this module's own: none of its offsets is one of Extism's.
    (memory (export "memory") 1)
    (data (i32.const 0) "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    (data (i32.const 80) "{\"status\":203,\"headers\":{\"content-type\":\"application/json\"},\"body_base64\":\"")
    (data (i32.const 160) "\"}")

    ;; Where the next byte of the output goes, in Extism's memory.
    (global $at (mut i64) (i64.const 0))

    (func $put (param $byte i32)
        (call $store (global.get $at) (local.get $byte))
        (global.set $at (i64.add (global.get $at) (i64.const 1))))
    (func $put_text (param $from i32) (param $length i32) (local $end i32)
        (local.set $end (i32.add (local.get $from) (local.get $length)))
        (loop $next
            (call $put (i32.load8_u (local.get $from)))
            (br_if $next (i32.lt_u (local.tee $from (i32.add (local.get $from) (i32.const 1))) (local.get $end)))))

    ;; Whether the input has a byte there, and that byte; 0 if not.
    (func $has (param $i i64) (result i32) (i64.lt_u (local.get $i) (call $input_length)))
    (func $byte (param $i i64) (result i32)
        (if (result i32) (call $has (local.get $i))
            (then (call $input_load (local.get $i)))
            (else (i32.const 0))))
    ;; The letter for six bits, or the padding.
    (func $put_letter (param $bits i32) (param $is_there i32)
        (call $put (i32.load8_u
            (select (i32.and (local.get $bits) (i32.const 63)) (i32.const 64) (local.get $is_there)))))

    (func (export "mirror") (local $length i64) (local $output i64) (local $i i64) (local $three i32)
        ;; The two texts around the base64 have 77 bytes.
        (local.set $length (i64.add (i64.const 77) (i64.mul (i64.const 4)
            (i64.div_u (i64.add (call $input_length) (i64.const 2)) (i64.const 3)))))
        (local.set $output (call $alloc (local.get $length)))
        (global.set $at (local.get $output))
        (call $put_text (i32.const 80) (i32.const 75))
        (block $done (loop $next
            (br_if $done (i32.eqz (call $has (local.get $i))))
            (local.set $three (i32.or
                (i32.shl (call $byte (local.get $i)) (i32.const 16))
                (i32.or
                    (i32.shl (call $byte (i64.add (local.get $i) (i64.const 1))) (i32.const 8))
                    (call $byte (i64.add (local.get $i) (i64.const 2))))))
            (call $put_letter (i32.shr_u (local.get $three) (i32.const 18)) (i32.const 1))
            (call $put_letter (i32.shr_u (local.get $three) (i32.const 12)) (i32.const 1))
            (call $put_letter
                (i32.shr_u (local.get $three) (i32.const 6)) (call $has (i64.add (local.get $i) (i64.const 1))))
            (call $put_letter (local.get $three) (call $has (i64.add (local.get $i) (i64.const 2))))
            (local.set $i (i64.add (local.get $i) (i64.const 3)))
            (br $next)))
        (call $put_text (i32.const 160) (i32.const 2))
        (call $output_set (local.get $output) (local.get $length))))
