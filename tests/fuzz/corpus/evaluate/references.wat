(module
  (table $t 2 20 externref)
  (global $r (mut externref) (ref.null extern))
  (elem $passive externref (ref.null extern) (ref.null extern))
  (func $same (param externref) (result externref) (local.get 0))
  (func (export "run") (result i32) (local externref)
    (table.init $t $passive (i32.const 0) (i32.const 0) (i32.const 2))
    (drop (table.grow $t (ref.null extern) (i32.const 3)))
    (loop $g
      (table.set $t (i32.const 4) (call $same (global.get $r)))
      (br_if $g (i32.ne (table.grow $t (local.get 0) (i32.const 1)) (i32.const -1))))
    (i32.eqz (ref.is_null (table.get $t (i32.const 4))))))
---
1
