(module
  (table $t (export "table") 2 10 funcref)
  (elem declare func $f)
  (func $f)
  (func (export "_initialize") (table.set $t (i32.const 1) (ref.func $f)))
  (func (export "run") (call_indirect (i32.const 1)) (table.set $t (i32.const 1) (ref.null func))))
---
run
run
