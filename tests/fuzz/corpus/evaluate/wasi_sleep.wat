(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $f (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "run") (i64.store (i32.const 24) (i64.const 3600000000000)) (i32.store (i32.const 16) (i32.const 1))
    (drop (call $f (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))
---
0
