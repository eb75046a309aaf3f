(module (memory 1) (data "abc") (table 2 funcref) (elem func $f)
  (func $f (export "run") (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 3)) (data.drop 0)
    (table.init 0 (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop 0)))
