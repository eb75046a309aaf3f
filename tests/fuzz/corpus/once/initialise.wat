(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "free" (func $free (param i64)))
  (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
  (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
  (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
  (memory (export "memory") 1 30)
  (global $n (mut i64) (i64.const 1))
  (func $colour (result i64) (local $p i64)
    (local.set $p (call $alloc (i64.const 6)))
    (call $store (local.get $p) (i64.const 0x72756f6c6f63))
    (local.get $p))
  (func (export "_initialize")
    (drop (memory.grow (i32.const 3)))
    (memory.fill (i32.const 70000) (i32.const 7) (i32.const 9000))
    (global.set $n (i64.const -5))
    (call $free (call $alloc (i64.const 100000)))
    (call $var_set (call $colour) (call $config_get (call $colour))))
  (func (export "run") (local $p i64)
    (global.set $n (i64.add (global.get $n) (i64.load (i32.const 70001))))
    (local.set $p (call $alloc (i64.const 16)))
    (call $store (local.get $p) (global.get $n))
    (call $store (i64.add (local.get $p) (i64.const 8)) (local.get $p))
    (call $output (local.get $p) (i64.const 16)))
  (func (export "colour") (call $output (call $var_get (call $colour)) (i64.const 4)))
  (func (export "fails") (global.set $n (i64.const 0)) unreachable))
---
run
run a
colour
fails
_initialize
run
missing
