(module (memory 1) (func $f (result i32) (i32x4.extract_lane 1 (i32x4.mul (v128.load (i32.const 0)) (v128.const i32x4 1 2 3 4))))
  (func (export "run") (result i32) (return_call $f)))
