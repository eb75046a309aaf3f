(module (global $g (mut i32) (i32.const 0)) (func (export "run") (local i32)
  [60000 (if (local.get 0) (then (local.set 0 (global.get $g))))]))
