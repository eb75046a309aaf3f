(module (func (export "run")) [30 (func (local v128 v128) [1200
  (local.set 0 (i8x16.popcnt (i16x8.q15mulr_sat_s (i64x2.mul (local.get 0) (local.get 1)) (local.get 1))))])])
