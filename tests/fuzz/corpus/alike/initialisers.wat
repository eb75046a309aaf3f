(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (func (export "_initialize") (drop (call $alloc (i64.const 10))))
  (func (export "__wasm_call_ctors") (drop (call $alloc (i64.const 100))))
  (func (export "hs_init") (param i32 i32) (drop (call $alloc (i64.const 1000))))
  (func (export "run")))
---
1
