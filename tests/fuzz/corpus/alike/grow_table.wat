(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "input_length" (func $length (result i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error (param i64)))
  (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
  (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
  (import "extism:host/env" "log_error" (func $log (param i64)))
  (memory (export "memory") 1 200)
  (table $t 1 5000 funcref)
  (global $n (mut i32) (i32.const 0))
  (func $echo (call $output (call $input) (call $length)))
  (func $deep (call $deep))
  (func (export "silent") (call $echo))
  (func (export "run") (result i32)
    (loop $g (br_if $g (i32.ne (table.grow $t (ref.null func) (i32.const 100)) (i32.const -1)))) (table.size $t)))
---
1
