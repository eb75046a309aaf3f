(module (global $g (mut i32) (i32.const 0)) (func (export "run") (local [500 i32 ])
  [500 (loop ] [500 (local.set 0 (i32.add (local.get 1) (i32.const 1)))
    (local.set 1 (i32.add (local.get 0) (i32.const 1)))] [500 (br_if 0 (global.get $g)))]))
