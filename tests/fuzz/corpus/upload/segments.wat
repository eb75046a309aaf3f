(module
  (memory (export "memory") 2)
  [40 (data "nobody reads this")]
  (data $read "it reads this")
  [40 (data (i32.const 4090) "over") (data (i32.const 4093) "each other") (data (i32.const 70000) "far")]
  (data $active (i32.const 131068) "end")
  (func (export "run") (result i32)
    (memory.init $read (i32.const 0) (i32.const 3) (i32.const 5))
    (memory.init $active (i32.const 0) (i32.const 0) (i32.const 0))
    (data.drop $read)
    (memory.init $read (i32.const 0) (i32.const 3) (i32.const 5))
    i32.const 0))
