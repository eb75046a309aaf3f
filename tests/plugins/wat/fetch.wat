;; Fetches the URL that is its input, and sends the config value `key` as a bearer token. Its output is the answer's body.
(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "load_u8" (func $load (param i64) (result i32)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "input_length" (func $input_length (result i64)))
    (import "extism:host/env" "input_load_u8" (func $input (param i64) (result i32)))
    (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
    (import "extism:host/env" "http_request" (func $http_request (param i64 i64) (result i64)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/env" "error_set" (func $error_set (param i64)))

    ;; Memory of this module's own: none of its offsets is one of Extism's.
    (memory (export "memory") 1)
    (data (i32.const 0) "key")
    (data (i32.const 16) "{\"url\":\"")
    (data (i32.const 32) "\",\"headers\":{\"authorization\":\"Bearer ")
    (data (i32.const 96) "\"}}")
    (data (i32.const 128) "set the config value \"key\"")

    ;; Each copies to `at`, in Extism's memory, and gives where its copy ends.
    (func $put (param $at i64) (param $from i32) (param $length i32) (result i64) (local $end i32)
        (local.set $end (i32.add (local.get $from) (local.get $length)))
        (loop $next
            (call $store (local.get $at) (i32.load8_u (local.get $from)))
            (local.set $at (i64.add (local.get $at) (i64.const 1)))
            (br_if $next (i32.lt_u (local.tee $from (i32.add (local.get $from) (i32.const 1))) (local.get $end))))
        (local.get $at))
    (func $put_block (param $at i64) (param $block i64) (result i64) (local $i i64)
        (block $done (loop $next
            (br_if $done (i64.ge_u (local.get $i) (call $length (local.get $block))))
            (call $store
                (i64.add (local.get $at) (local.get $i))
                (call $load (i64.add (local.get $block) (local.get $i))))
            (local.set $i (i64.add (local.get $i) (i64.const 1)))
            (br $next)))
        (i64.add (local.get $at) (local.get $i)))
    (func $put_input (param $at i64) (result i64) (local $i i64)
        (block $done (loop $next
            (br_if $done (i64.ge_u (local.get $i) (call $input_length)))
            (call $store (i64.add (local.get $at) (local.get $i)) (call $input (local.get $i)))
            (local.set $i (i64.add (local.get $i) (i64.const 1)))
            (br $next)))
        (i64.add (local.get $at) (local.get $i)))

    ;; A block of Extism's memory with a text of this module's.
    (func $text (param $from i32) (param $length i32) (result i64) (local $block i64)
        (local.set $block (call $alloc (i64.extend_i32_u (local.get $length))))
        (drop (call $put (local.get $block) (local.get $from) (local.get $length)))
        (local.get $block))

    (func (export "fetch") (result i32) (local $key i64) (local $request i64) (local $at i64) (local $body i64)
        (local.set $key (call $config_get (call $text (i32.const 0) (i32.const 3))))
        (if (i64.eqz (local.get $key)) (then
            (call $error_set (call $text (i32.const 128) (i32.const 26)))
            (return (i32.const 1))))
        ;; The three texts around the URL and the key have 48 bytes.
        (local.set $request (call $alloc
            (i64.add (i64.const 48) (i64.add (call $input_length) (call $length (local.get $key))))))
        (local.set $at (call $put (local.get $request) (i32.const 16) (i32.const 8)))
        (local.set $at (call $put_input (local.get $at)))
        (local.set $at (call $put (local.get $at) (i32.const 32) (i32.const 37)))
        (local.set $at (call $put_block (local.get $at) (local.get $key)))
        (drop (call $put (local.get $at) (i32.const 96) (i32.const 3)))
        (local.set $body (call $http_request (local.get $request) (i64.const 0)))
        (call $output_set (local.get $body) (call $length (local.get $body)))
        (i32.const 0)))
