(module
  (import "wasi_snapshot_preview1" "fd_write" (func $f (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "run") (i32.store (i32.const 4) (i32.const 65000)) (drop (call $f (i32.const 1) (i32.const 0) (i32.const 1000) (i32.const 65000)))))
---
1
