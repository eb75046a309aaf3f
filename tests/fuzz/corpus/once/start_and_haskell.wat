(module
  (memory (export "memory") 1)
  (global $n (mut i32) (i32.const 0))
  (data $passive "passive")
  (start $begin)
  (func $begin (global.set $n (i32.add (global.get $n) (i32.const 1))) (memory.init $passive (i32.const 9) (i32.const 0) (i32.const 7)))
  (func (export "_initialize") (global.set $n (i32.mul (global.get $n) (i32.const 10))))
  (func (export "hs_init") (param i32 i32) (global.set $n (i32.add (global.get $n) (local.get 0))))
  (func (export "run") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))
---
run
run
hs_init
