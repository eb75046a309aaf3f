(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $f (param i32)))
  (memory (export "memory") 1)
  (func (export "run") (call $f (i32.const 3))))
---
0
